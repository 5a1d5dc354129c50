#!/bin/busybox sh
# The first process of a throw-away guest: mounts, modules, scheduler, agent; then it runs the host's commands.
# The names of busybox's other programs are not there yet.
busybox mkdir -p /dev /proc /sys /run /tmp /root /etc /sbin /usr/bin /usr/sbin
busybox mount -t proc proc /proc
busybox --install -s /bin 2>/dev/null
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
export LD_LIBRARY_PATH=/usr/lib/host
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
exec </dev/null >/dev/console 2>&1
ip link set lo up
hostname guest

while read -r module; do
    insmod "$module" || echo "init: $module cannot be loaded"
done </etc/scx-vsock/modules

# The host may send commands as soon as the agent is ready.
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo

[ ! -f /etc/scx-vsock/scheduler ] || sh /etc/scx-vsock/scheduler 3>&- &
sh /etc/scx-vsock/agent 3>&- &

# A request is one line of shell on the second serial port. The answer is the status and the sizes of both outputs on
# a line, then the outputs.
while IFS= read -r request <&3; do
    sh -c "$request" </dev/null >/tmp/.output 2>/tmp/.errors 3>&-
    status=$?
    echo "$status $(stat -c %s /tmp/.output) $(stat -c %s /tmp/.errors)" >&3
    cat /tmp/.output /tmp/.errors >&3
done
poweroff -f
