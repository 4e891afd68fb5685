#!/bin/sh
# Installs the system packages that the integration tests use and this machine lacks (Debian or Ubuntu, as root).
#     sh tests/integ/setup.sh [COMMAND...]     only those that give these commands
set -eu
PATH=$PATH:/usr/sbin:/sbin

# command:package
KNOWN='chromium:chromium munged:munge slurmctld:slurmctld slurmd:slurmd squeue:slurm-client slurmdbd:slurmdbd
    mariadbd:mariadb-server-core'
missing=''
for pair in $KNOWN; do
    command=${pair%%:*}
    if [ $# -gt 0 ]; then
        case " $* " in *" $command "*) ;; *) continue ;; esac
    fi
    command -v "$command" > /dev/null || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "error: the integration tests need$missing: run 'sh tests/integ/setup.sh' as root on Debian or Ubuntu" >&2
    exit 1
fi
# Daemons would start at their installation; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -o DPkg::Lock::Timeout=300 update -qq
# shellcheck disable=SC2086  # a list of packages
apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $missing
