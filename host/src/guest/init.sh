#!/bin/busybox sh
# The first process of a throw-away guest: mounts, modules, scheduler, agent; then it runs the host's commands.
# A second serial port is read and written as guest_message.rs and command_channel.rs of the host's library have it.

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

# The host may send commands as soon as the agent is ready.
commands=$(cat /etc/scx-vsock/commands)
exec 3<>"$commands"
stty -F "$commands" raw -echo

# A FIFO with one line in it: the process that has read the line may send, and writes it again.
mkfifo /run/send.lock
exec 8<>/run/send.lock
echo >&8

# Sends a message to the host: a line, and after it the bytes of a file.
send() { # LINE [FILE]
    read -r _ <&8
    echo "$1" >&3
    [ -z "$2" ] || cat "$2" >&3
    echo >&8
}

# Sends an output of a command in pieces, as they come. An empty piece is its end.
relay() { # stdout|stderr COMMAND_ID
    local piece="/run/$1.$2"
    while dd of="$piece" bs=65536 count=1 2>/dev/null && [ -s "$piece" ]; do
        send "$1 $2 $(stat -c %s "$piece")" "$piece"
    done
    rm -f "$piece"
    send "$1 $2 0"
}

run() { # COMMAND_ID COMMAND
    local outputs="/run/outputs.$1" status
    mkdir "$outputs"
    mkfifo "$outputs/stdout" "$outputs/stderr"
    # For reading and writing, a FIFO is opened without waiting for its other end; and with that, for reading. A wait could
    # be interrupted, which ends a shell.
    exec 4<>"$outputs/stdout" 5<>"$outputs/stderr"
    exec 6<"$outputs/stdout" 7<"$outputs/stderr"
    rm -r "$outputs"
    relay stdout "$1" <&6 4>&- 5>&- 6<&- 7<&- &
    relay stderr "$1" <&7 4>&- 5>&- 6<&- 7<&- &
    exec 6<&- 7<&-
    sh -c "$2" </dev/null >&4 2>&5 3>&- 4>&- 5>&- 8>&-
    status=$?
    # An output does not end while a process that the command left behind has it open. The id marks how much of it is the
    # command's.
    echo -n "$1" >&4
    echo -n "$1" >&5
    exec 4>&- 5>&-
    send "exited $1 $status"
}

while read -r module; do
    insmod "$module" || echo "init: $module cannot be loaded"
done </etc/scx-vsock/modules
ls -d /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio* >/dev/null 2>&1 || {
    echo 'init: there is no virtio-vsock device'
    send no-vsock
}

[ ! -f /etc/scx-vsock/scheduler ] || {
    echo 'init: the scheduler starts'
    sh /etc/scx-vsock/scheduler 3>&- 8>&-
    status=$?
    echo "init: the scheduler exited with status $status"
    send "scheduler-ended $status"
} &
{
    sh /etc/scx-vsock/agent 3>&- 8>&-
    status=$?
    echo "init: the agent exited with status $status"
    send "agent-ended $status"
} &

# A signal that interrupts `read` makes it forget the part of a line that it has. So the shell that reads requests has no
# child that could end meanwhile: what a command leaves behind becomes a child of the first process.
while :; do
    (
        while IFS= read -r request <&3; do
            (run "${request%% *}" "${request#* }")
        done
        poweroff -f
    )
done
