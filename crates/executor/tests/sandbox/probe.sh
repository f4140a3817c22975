#!/bin/sh
# prints one KEY=VALUE per line; the harness diffs it against the expected file
st() { while read -r k v x; do [ "$k" = "$1:" ] && echo "$1=$v"; done </proc/self/status; }
for k in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters; do st $k; done
for n in mnt pid net ipc uts cgroup user time; do echo "ns_$n=$(readlink /proc/self/ns/$n)"; done
set -- /proc/[0-9]*; echo "pids=$#"
echo "uidmap=$(tr -s ' ' '_' </proc/self/uid_map | tr '\n' ';') setgroups=$(cat /proc/self/setgroups)"
echo "umask=$(umask) cwd=$(pwd -P) nofile=$(ulimit -n)/$(ulimit -Hn) oom=$(cat /proc/self/oom_score_adj) id=$(id | tr ' ' ',')"
for f in /proc/$$/fd/*; do echo "fd ${f##*/}=$(readlink $f)"; done
for p in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
  if [ ! -e "$p" ]; then v=absent; elif [ -d "$p" ]; then v="dir:$(ls -A "$p" 2>/dev/null | wc -l)"; else v="bytes:$(head -c 64 "$p" 2>/dev/null | wc -c)"; fi; echo "mask $p=$v"; done
for p in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper \
         /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release; do
  [ -e "$p" ] || continue; if ( : >>"$p" ) 2>/dev/null; then v=WRITABLE; else v=denied; fi; echo "write $p=$v"; done
( : >/sys/fs/cgroup/x$$ ) 2>/dev/null && echo "cgroup_root=WRITABLE" || echo "cgroup_root=denied"
for d in "b 8 0" "b 254 0" "c 1 1" "c 1 11" "c 10 237" "c 10 229" "c 10 200"; do n=${TMPDIR:-/tmp}/.pr$$; rm -f $n
  if mknod $n $d 2>/dev/null; then if ( : <$n ) 2>/dev/null; then v=OPENED; else v=open-denied; fi; else v=mknod-denied; fi; rm -f $n; echo "dev $d=$v"; done
echo "dev_list=$(ls /dev | sort | tr '\n' ',')"
for f in null zero full random urandom tty; do echo "dev_$f=$(stat -c '%t:%T:%a' /dev/$f 2>/dev/null)"; done
for l in ptmx fd stdin stdout stderr; do echo "link_$l=$(readlink /dev/$l 2>/dev/null)"; done
while read -r a b c d mp o x; do echo "mnt $mp=$o"; done </proc/self/mountinfo
(unshare -U true) 2>/dev/null && echo userns=ALLOWED || echo userns=denied
(mount -t tmpfs x /mnt) 2>/dev/null && echo mount=ALLOWED || echo mount=denied
echo "env=$(env | cut -d= -f1 | sort | tr '\n' ',')"
