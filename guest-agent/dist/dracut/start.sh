#!/bin/sh
# Starts the agent in an image. dracut sources this file.
# shellcheck source=/dev/null
[ ! -r /etc/default/scx-vsock-agent ] || . /etc/default/scx-vsock-agent
modprobe -q vmw_vsock_virtio_transport || :
# shellcheck disable=SC2086 # several arguments
/usr/sbin/scx-vsock-agent ${SCX_VSOCK_AGENT_ARGUMENTS:-} </dev/null >/dev/console 2>&1 &
echo $! >/scx-vsock-agent.pid
