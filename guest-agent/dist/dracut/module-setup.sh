#!/bin/bash
# The agent in an image of dracut, where it runs until the guest's own root is there. Only an image that is asked for it has
# it: dracut --add scx-vsock-agent.

check() {
    require_binaries /usr/sbin/scx-vsock-agent || return 1
    return 255
}

depends() {
    return 0
}

# Also where the machine that makes the image uses none of them.
installkernel() {
    hostonly='' instmods virtio_pci virtio_mmio vsock vmw_vsock_virtio_transport
}

install() {
    inst_multiple /usr/sbin/scx-vsock-agent cat modprobe
    inst_multiple -o /etc/default/scx-vsock-agent
    # shellcheck disable=SC2154 # dracut sets moddir
    inst_hook pre-udev 10 "$moddir/start.sh"
    # shellcheck disable=SC2154
    inst_hook cleanup 10 "$moddir/stop.sh"
}
