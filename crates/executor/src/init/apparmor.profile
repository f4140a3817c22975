# Containers of forge that ask for no other profile. What they may do in namespaces of their own is for capabilities and for the
# system call filter to say; this holds whatever those allow.
profile forge-default-1 flags=(attach_disconnected, mediate_deleted) {
  network,
  capability,
  file,
  umount,
  deny mount,

  # From outside, and among containers' processes, which see each other no further than their namespaces.
  signal (receive),
  signal (send) peer=forge-default-1,
  ptrace (trace, tracedby, read, readby) peer=forge-default-1,

  # The kernel's settings. Open are files of processes and limits of shared memory.
  deny /proc/* w,
  deny /proc/[^1-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/{sysrq-trigger,kcore} rwklx,

  # Devices and firmware. Open are the container's own control groups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
