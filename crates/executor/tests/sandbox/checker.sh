# The in-container checks of the runtime specification's validation suite, one line each: NAME ok, or NAME and what was found.
is() { if [ "$2" = "$3" ]; then echo "$1 ok"; else echo "$1 found <$2> expected <$3>"; fi; }
flag() { while read -r _ _ _ _ point options _; do [ "$point" = "$1" ] && echo "$options"; done </proc/self/mountinfo | tail -n 1; }
has() { case ",$(flag "$2")," in *",$3,"*) echo "$1 ok";; *) echo "$1 found <$(flag "$2")> expected <$3>";; esac; }
status() { while read -r key value _; do [ "$key" = "$1:" ] && echo "$value"; done </proc/self/status; }
is root_fs "$(cat /marker)" "the root"
is root_is_writable "$(touch /tmp/new && echo yes)" yes
is hostname "$(hostname)" checked
is process_cwd "$(pwd -P)" /srv
is process_args "$1,$2" "one,two words"
is process_env "$CHECKED" "a value"
is process_no_new_privileges "$(status NoNewPrivs)" 1
is user "$(id -u):$(id -g)" 7:8
is user_groups "$(id -G)" "8 9 10"
is user_umask "$(umask)" 0027
is rlimits "$(ulimit -Sn)/$(ulimit -Hn) $(ulimit -Sc)/$(ulimit -Hc)" "100/200 0/0"
is capabilities "$(status CapBnd) $(status CapEff) $(status CapPrm) $(status CapInh) $(status CapAmb)" \
   "0000000000000401 0000000000000000 0000000000000000 0000000000000000 0000000000000000"
for link in fd stdin stdout stderr; do
  case $link in fd) to=fd;; stdin) to=fd/0;; stdout) to=fd/1;; stderr) to=fd/2;; esac
  is "default_symlink_$link" "$(readlink /dev/$link)" "/proc/self/$to"
done
is default_symlink_ptmx "$(readlink /dev/ptmx | sed 's,^/dev/,,')" pts/ptmx
while read -r _ _ _ _ point _ rest; do echo "$point ${rest#*- }"; done </proc/self/mountinfo >/tmp/mounts
for pair in /proc:proc /sys:sysfs /dev:tmpfs /dev/pts:devpts /dev/shm:tmpfs /dev/mqueue:mqueue; do
  point=${pair%:*}
  is "default_fs_$point" "$(grep "^$point " /tmp/mounts | tail -n 1 | cut -d ' ' -f 2)" "${pair#*:}"
done
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  name=${node%%:*}
  is "default_device_$name" "$(stat -c '%F %t:%T %a' "/dev/$name")" "character special file ${node#*:} 666"
done
is extra_device "$(dd if=/dev/extra bs=1 count=1 2>/dev/null | wc -c) $(stat -c %t:%T /dev/extra)" "1 1:5"
is linux_process "$$ $(ls -d /proc/[0-9]* | head -n 1)" "1 /proc/1"
is masked_file "$(cat /secret/file 2>/dev/null; stat -c '%F %t:%T' /secret/file)" "character special file 1:3"
is masked_folder "$(ls -A /secret/folder | wc -l) $(touch /secret/folder/x 2>/dev/null || echo refused)" "0 refused"
is masked_missing "$(test -e /secret/missing || echo absent)" absent
is masked_default "$(cat /proc/kcore /proc/keys 2>/dev/null | head -c 10)" ""
is readonly_path "$(touch /kept/x 2>/dev/null || echo refused)" refused
is readonly_default "$( (echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo refused)" refused
is oom_score "$(cat /proc/self/oom_score_adj)" 0
is seccomp "$(status Seccomp)" 2
is mounts_order "$(cat /outer/inner/file)" inner
has mounts_readonly /outer/inner/file ro
has mounts_nosuid /outer/inner/file nosuid
has mounts_nodev /outer/inner/file nodev
has mounts_noexec /scratch noexec
is propagation "$(grep -c ' shared:' /proc/self/mountinfo)" 0
is uid_map "$(tr -s ' ' </proc/self/uid_map)" " 0 0 4294967295"
is gid_map "$(tr -s ' ' </proc/self/gid_map)" " 0 0 4294967295"
is namespaces_network "$(ls /sys/class/net)" lo
