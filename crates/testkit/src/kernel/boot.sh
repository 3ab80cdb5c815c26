#!/bin/sh
# The guest's first process. Its root is the host's /, read-only by hostfs; it
# puts a RAM overlay on top, so that the guest may write anywhere and nothing of
# it reaches the host, and goes on in there with run.sh.
B=/usr/bin/busybox
control=${0%/*}
root=/mnt/root

stop() {
    echo "kernel runner: $*" >/dev/console
    exec $B poweroff -f
}

# Until this is mounted, hostfs shows the host's own /proc.
$B mount -t proc proc /proc || stop "no /proc"
$B mount -t tmpfs -o mode=755 tmpfs /mnt || stop "no tmpfs"
$B insmod "/usr/lib/uml/modules/$($B uname -r)/kernel/fs/overlayfs/overlay.ko"
$B mkdir /mnt/upper /mnt/work $root
$B mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay $root ||
    stop "no overlay on the root"
$B mount --move /dev $root/dev
$B mount --move /proc $root/proc
$B mount -t sysfs sysfs $root/sys
$B mount -t tmpfs -o mode=755 tmpfs $root/run
$B mount -t tmpfs -o mode=755 tmpfs $root/mnt
$B mkdir -p $root/dev/shm $root/dev/pts
$B mount -t tmpfs tmpfs $root/dev/shm
$B mount -t devpts devpts $root/dev/pts
while IFS= read -r window; do
    $B mount -t hostfs -o "$window" hostfs "$root$window" || stop "cannot share $window"
done <"$control/windows"
exec $B chroot $root /bin/sh "$control/run.sh"
