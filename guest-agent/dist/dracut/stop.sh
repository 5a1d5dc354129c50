#!/bin/sh
# Ends the agent of an image, since the guest's own root has one and the scheduler. dracut sources this file.
if [ -r /scx-vsock-agent.pid ]; then
    kill "$(cat /scx-vsock-agent.pid)" || :
fi
