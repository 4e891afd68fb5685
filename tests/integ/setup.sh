#!/bin/sh
# Installs the system packages that the integration tests use and this machine lacks (Debian or Ubuntu, as root).
#     sh tests/integ/setup.sh [COMMAND...]     only those that give these commands
set -eu

# command:package
KNOWN='chromium:chromium'
missing=''
for pair in $KNOWN; do
    command=${pair%%:*}
    if [ $# -gt 0 ]; then
        case " $* " in *" $command "*) ;; *) continue ;; esac
    fi
    command -v "$command" > /dev/null || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "the integration tests need$missing: run 'sh tests/integ/setup.sh' as root" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of packages
apt-get install -y -qq --no-install-recommends $missing
