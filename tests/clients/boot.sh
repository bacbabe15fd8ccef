# The first process of a test's machine, in namespaces of its own: gives it the files of the system
# under $1 (nothing for this one's) with directories that are its own, and the program $2 as /run/shoal.
# Says its process id, as the outside counts, when that is done.
set -e
system=$1 shoal=$2
read -r pid rest < /proc/self/stat

if [ -n "$system" ]; then
    mount --bind "$system" "$system"
    mount --rbind /sys "$system/sys"
    mount --rbind /dev "$system/dev"
fi
mount -t tmpfs tmpfs "$system/run"
: > "$system/run/shoal"
mount --bind "$shoal" "$system/run/shoal"
mkdir "$system/run/etc" "$system/run/outside"
cp -a "$system/etc/." "$system/run/etc"
mount --bind "$system/run/etc" "$system/etc"
for directory in root tmp var/lib var/tmp; do
    mount -t tmpfs tmpfs "$system/$directory"
done
if [ -n "$system" ]; then
    cd "$system"
    pivot_root . run/outside
fi
cd /
mount -t proc proc /proc
[ -z "$system" ] || umount --lazy /run/outside
# crun does not start where both versions of cgroups are mounted.
! mountpoint --quiet /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
echo "$pid"
exec sleep infinity
