# Inside the overlay: loads the modules, runs the script, reports, powers off.
# The three serial lines lead to files of the host: output, errors, status.
B=/usr/bin/busybox
control=${0%/*}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=dumb DM_DISABLE_UDEV=1
. "$control/env.sh"

fail() {
    echo "kernel runner: $*" >/dev/console
    exec $B poweroff -f
}

for line in 0 1 2; do
    stty -F /dev/ttyS$line raw -echo || fail "no serial line $line"
done
mkdir -p /usr/lib/modules /run/lock
ln -sfn "/usr/lib/uml/modules/$($B uname -r)" "/usr/lib/modules/$($B uname -r)"
for tool in modprobe insmod rmmod lsmod; do
    [ -e /sbin/$tool ] || ln -s $B /sbin/$tool
done
for module in $FIRN_MODULES; do
    modprobe "$module" || fail "no module $module"
done
$B ip link set lo up

# power-cut [STATUS]: nothing is flushed (-n; poweroff would), nothing is unmounted.
mkdir /run/firn
cat >/run/firn/power-cut <<'S'
#!/bin/sh
echo "${1:-99}" >/dev/ttyS2
exec /usr/bin/busybox poweroff -n -f
S
chmod +x /run/firn/power-cut
PATH=$PATH:/run/firn

cd "$FIRN_FOLDER" 2>/dev/null || cd /
/bin/sh "$control/script" </dev/null >/dev/ttyS0 2>/dev/ttyS1
status=$?
sync
# Setting a line's mode waits until all of its output is on the host.
stty -F /dev/ttyS0 raw -echo
stty -F /dev/ttyS1 raw -echo
echo $status >/dev/ttyS2
stty -F /dev/ttyS2 raw -echo
exec $B poweroff -f
