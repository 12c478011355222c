#!/usr/bin/env bash
# Runs a command that saves itself on SIGTERM, and tells by its exit status whether to start it again:
#   launch/resumable.sh .venv/bin/python run.py --config=... --workdir=...
# SIGTERM is passed on. Exit status: 75 if the command was stopped by it (also if it then ended well, because it was
# stopped before its end), otherwise the command's own: 0 done, 2 a mistake that another start does not mend, anything
# else (1, 3, 134, 137: this host or another one was lost) worth another start.
set -u
"$@" &
child=$!
stopped=0
trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM
while :; do
  wait "$child"; status=$?
  kill -0 "$child" 2>/dev/null || break   # a signal ends `wait` early
done
[ "$stopped" = 1 ] && exit 75
exit "$status"
