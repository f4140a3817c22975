#!/bin/sh
cat "$GREETING_FILE"
echo "hello @VERSION@ runs as $(id -un) in $PWD and greets: $*"
