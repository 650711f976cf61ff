# The network and the four containers of one cluster. Each carries a label, and nothing without that
# label is ever touched.
# shellcheck shell=bash

# Makes the network with a subnet that Docker considers free. Containers keep fixed addresses over a
# restart only in networks whose subnet was named, so Docker is asked to pick one first.
make_network() {
  local _
  for _ in 1 2 3 4 5; do
    docker network create --label "$label" "$network" > /dev/null || fail "Docker cannot make a network"
    subnet=$(network_subnet)
    docker network rm "$network" > /dev/null
    docker network create --label "$label" --subnet "$subnet" "$network" > /dev/null 2>&1 && return
  done
  fail "Docker cannot make a network of subnet $subnet"
}

network_subnet() { docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' "$network"; }

# The address of a node: the subnet's own plus 11 to 14.
address() {
  local base=${subnet%/*} offset
  case "$1" in pg01) offset=11 ;; pg02) offset=12 ;; pg03) offset=13 ;; app01) offset=14 ;; esac
  echo "${base%.*}.$((${base##*.} + offset))"
}

# Prints running, exited, created, paused ... or missing.
container_state() {
  local state
  state=$(docker container inspect --format '{{.State.Status}}' "$(container "$1")" 2> /dev/null) || state=missing
  echo "$state"
}

# Prints the cluster's Debian release, or nothing when it is missing, incomplete or was never finished.
finished_cluster() {
  local node
  for node in "${nodes[@]}"; do
    [ "$(container_state "$node")" != missing ] || return 0
  done
  docker cp "$(container pg01):/var/lib/playground/finished" - 2> /dev/null | tar -xO 2> /dev/null || true
}

# Refuses to go on when a container of a name we need belongs to somebody else.
check_names_are_ours() {
  local node
  for node in "${nodes[@]}"; do
    [ "$(container_state "$node")" = missing ] && continue
    [ "$(docker container inspect --format '{{index .Config.Labels "pgcm.cluster"}}' "$(container "$node")")" = "$cluster" ] \
      || fail "a container named $(container "$node") exists that is not of this playground; remove it or set PGCM_CLUSTER=NAME"
  done
}

# Options for systemd as PID 1. --privileged is not needed.
systemd_options() {
  printf '%s\n' --cap-add NET_ADMIN --cap-add SYS_ADMIN --cap-add IPC_LOCK --cap-add SYS_NICE \
    --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
    --tmpfs /run --tmpfs /run/lock --shm-size 512m --volume /sys/fs/cgroup:/sys/fs/cgroup:rw
  # With a private namespace systemd would look for its own group at the root of the host's tree.
  [ "$cgroup_version" = 1 ] || echo --cgroupns=host
}

# Arguments for systemd: newer ones use cgroup v1 only when told to.
systemd_arguments() {
  [ "$cgroup_version" != 1 ] || printf '%s\n' systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
}

make_node() {
  local node=$1 host data options=() init=/sbin/init arguments=()
  mapfile -t options < <(systemd_options)
  mapfile -t arguments < <(systemd_arguments)
  for host in "${nodes[@]}"; do
    [ "$host" = "$node" ] || options+=(--add-host "$host:$(address "$host")")
  done
  if [ "$node" != app01 ]; then
    # Fencing kills a container through this.
    options+=(--volume "${DOCKER_SOCKET:-/var/run/docker.sock}:/run/docker.sock")
    # On the host's own file system: a container's layered one is slow, to write above all.
    data=$(data_volume "$node") || return 1
    options+=(--volume /var --volume "$data/var/lib/postgresql")
  elif [ "$cluster" = pgcm ]; then
    options+=(--publish 127.0.0.1:6432:6432)
  fi
  if usr_is_shared; then
    options+=(--volume "$usr_volume:/usr" --volume /etc)
    init=/usr/local/lib/playground/init-in-memory
  fi
  docker create --name "$(container "$node")" --hostname "$node" --label "$label" --stop-timeout 60 \
    --network "$network" --ip "$(address "$node")" "${options[@]}" "$image" "$init" "${arguments[@]}" > /dev/null
  install_node_files "$node"
}

# Prints what holds a node's Postgres: a volume on a small disk of its own with PGCM_DISK_MB, so that it can be
# filled without filling the host's; otherwise nothing, and Docker makes an unnamed volume.
data_volume() {
  local volume disk
  [ -n "${PGCM_DISK_MB:-}" ] || return 0
  volume=$(container "$1")-data
  disk=$(attach_disk "$volume") || return 1
  docker volume create --label "$label" --opt type=ext4 --opt device="$disk" "$volume" > /dev/null
  echo "$volume:"
}

# Where the files are that serve as small disks.
disk_directory=/var/tmp/pgcm-disks

# Makes a file into a disk with an empty file system and prints its device.
attach_disk() {
  local file=$disk_directory/$1 mounted disk
  as_root mkdir -p "$disk_directory"
  as_root truncate --size "${PGCM_DISK_MB}M" "$file"
  as_root mkfs.ext4 -q -m 0 "$file"
  disk=$(as_root losetup --find --show "$file") || return 1
  # Docker fills a volume from the image only if it is empty.
  mounted=$(mktemp -d "$work_dir/disk.XXXXXX")
  as_root mount "$disk" "$mounted" && as_root rmdir "$mounted/lost+found"
  as_root umount "$mounted"
  echo "$disk"
}

# Detaches this cluster's disks and removes their files.
remove_disks() {
  local file device
  for file in "$disk_directory/$(container pg)"0[123]-data; do
    [ -e "$file" ] || continue
    for device in $(as_root losetup --noheadings --output NAME --associated "$file"); do
      as_root losetup --detach "$device"
    done
    as_root rm -f "$file"
  done
}

# Where each process start goes through a file system in user space (fuse-overlayfs), Pacemaker's tools
# take twice as long. There all nodes share one volume with the image's /usr.
share_usr() {
  [ "$(docker info --format '{{.Driver}}' 2> /dev/null)" = fuse-overlayfs ] || return 0
  docker volume create --label "$label" "$usr_volume" > /dev/null
  # Docker fills an empty volume with what the image has there.
  docker run --rm --volume "$usr_volume:/usr" --entrypoint true "$image"
}

usr_is_shared() { docker volume inspect "$usr_volume" > /dev/null 2>&1; }

# Prints the nodes that need a pgcm of their own.
pgcm_hosts() {
  if usr_is_shared; then echo pg01; else printf '%s\n' "${nodes[@]}"; fi
}

start_node() { docker start "$(container "$1")" > /dev/null; }

make_nodes() {
  local hosts
  cgroup_version=$(docker info --format '{{.CgroupVersion}}' 2> /dev/null)
  postgres_version=$(docker run --rm --entrypoint ls "$image" /usr/lib/postgresql)
  # The newest that Pacemaker knows. A daemon that upgrades an older one keeps every schema in between in memory, and
  # goes through that memory at each write of the CIB.
  cib_schema=$(docker run --rm --entrypoint ls "$image" /usr/share/pacemaker | sed -n 's/^\(pacemaker-[0-9.]*\)\.rng$/\1/p' \
    | sort -V | tail -n 1)
  make_network
  make_secrets
  share_usr
  on_each make_node "${nodes[@]}" || fail "the containers could not be made; see above"
  mapfile -t hosts < <(pgcm_hosts)
  on_each install_pgcm "${hosts[@]}" || fail "pgcm could not be installed; see above"
  on_each start_node "${nodes[@]}" || fail "the containers do not start; see above"
}

# Removes this cluster's containers, volumes and network, and nothing else.
remove_cluster() {
  local ids
  ids=$(docker ps --all --quiet --filter "label=$label")
  # shellcheck disable=SC2086 # one id per word
  [ -z "$ids" ] || docker rm --force --volumes $ids > /dev/null
  ids=$(docker volume ls --quiet --filter "label=$label")
  # shellcheck disable=SC2086
  [ -z "$ids" ] || docker volume rm $ids > /dev/null
  remove_disks
  ids=$(docker network ls --quiet --filter "label=$label")
  # shellcheck disable=SC2086
  [ -z "$ids" ] || docker network rm $ids > /dev/null
}
