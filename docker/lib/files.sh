# The files that make a container the node it is. They go in with `docker cp` before its first boot,
# so that plain `docker start` brings everything up again without this script.
# shellcheck shell=bash

# fill SEED NODE: prints a seed from docker/seeds with its @PLACEHOLDERS@ replaced.
fill() {
  local seed=$1 node=$2 host host_map=
  for host in "${pg_nodes[@]}"; do host_map+="$host:$(container "$host");"; done
  sed -e "s|@NODE@|$node|g" -e "s|@ADDRESS@|$(address "$node")|g" \
    -e "s|@PG01@|$(address pg01)|g" -e "s|@PG02@|$(address pg02)|g" -e "s|@PG03@|$(address pg03)|g" \
    -e "s|@CLUSTER@|$cluster|g" -e "s|@SUBNET@|$subnet|g" -e "s|@VERSION@|$postgres_version|g" \
    -e "s|@CIB_SCHEMA@|$cib_schema|g" -e "s|@HOST_MAP@|$host_map|g" -e "s|@REP_MODE@|${wanted_mode:-sync}|g" \
    "$root/docker/seeds/$seed"
}

# The secrets of one cluster, made anew for each.
make_secrets() {
  mkdir -p "$work_dir/secrets"
  head -c 256 /dev/urandom > "$work_dir/secrets/authkey"
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$work_dir/secrets/token"
  printf '*:5432:*:replicator:%s\n' "$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')" \
    > "$work_dir/secrets/replication.pgpass"
}

# enable TREE UNIT...: as `systemctl enable` would.
enable() {
  local tree=$1 unit wants=$1/etc/systemd/system/multi-user.target.wants
  shift
  mkdir -p "$wants"
  for unit in "$@"; do ln -sf "/usr/lib/systemd/system/$unit.service" "$wants/$unit.service"; done
}

# What PgBouncer and Postgres know of user app's password, which is app. With the same secret on both sides
# PgBouncer logs in by what the client's own login proved; from the password it would have to derive a key for
# each connection, and after a failover clients wait for that.
# shellcheck disable=SC2016 # its dollar signs are its own
app_secret='SCRAM-SHA-256$4096:QUH/Y5selLE8r/tbhhVwGg==$oipcbTMdf8JOmTJZq9fiotoe6f9cONDwYTpqiWKPncI=:efJCDK79O33htYkIBbE9aXgzEI1ZM59eRLFSd3aCcME='

# Every node: PgBouncer, pgcm's configuration, and the proxy.
write_common_files() {
  local node=$1 tree=$2
  mkdir -p "$tree"/etc/{pgbouncer,pgsql-cluster-manager}
  cp "$root/config/pgbouncer.ini.template" "$tree/etc/pgbouncer/"
  # PgBouncer starts without databases and waits for the proxy to render the template.
  grep -v '{{' "$root/config/pgbouncer.ini.template" > "$tree/etc/pgbouncer/pgbouncer.ini"
  echo "\"app\" \"$app_secret\"" > "$tree/etc/pgbouncer/userlist.txt"
  chmod 0640 "$tree"/etc/pgbouncer/{pgbouncer.ini,userlist.txt}
  fill config.toml "$node" > "$tree/etc/pgsql-cluster-manager/config.toml"
  install -m 0600 "$work_dir/secrets/token" "$tree/etc/pgsql-cluster-manager/token"
  enable "$tree" pgbouncer pgcm-proxy
}

# The three nodes with Postgres: Corosync, Pacemaker, etcd, Postgres, and supervise.
write_postgres_files() {
  local node=$1 tree=$2 config=$2/etc/postgresql/$postgres_version/main
  mkdir -p "$tree"/etc/{corosync,default} "$tree/var/lib/pacemaker/cib" "$config"
  install -m 0400 "$work_dir/secrets/authkey" "$tree/etc/corosync/authkey"
  install -m 0600 "$work_dir/secrets/replication.pgpass" "$tree/etc/pgsql-cluster-manager/"
  fill corosync.conf "$node" > "$tree/etc/corosync/corosync.conf"
  fill cib-first.xml "$node" > "$tree/var/lib/pacemaker/cib/cib.xml"
  fill etcd "$node" > "$tree/etc/default/etcd"
  fill postgresql.conf "$node" > "$config/postgresql.conf"
  fill pg_hba.conf "$node" > "$config/pg_hba.conf"
  : > "$config/pg_ident.conf"
  # Debian's own tools must leave Postgres to Pacemaker.
  echo manual > "$config/start.conf"
  enable "$tree" corosync pacemaker etcd pgcm-supervise
}

# Packs what a directory holds, without the directories themselves: theirs in the image must stay.
pack() {
  (cd "$1" && find . ! -type d -print0 | sort -z \
    | tar --create --no-recursion --owner=0 --group=0 --numeric-owner --mtime=@0 --null --files-from=-)
}

install_node_files() {
  local node=$1 tree=$work_dir/tree-$1
  write_common_files "$node" "$tree"
  [ "$node" = app01 ] || write_postgres_files "$node" "$tree"
  pack "$tree" | docker cp - "$(container "$node"):/"
}

# pgcm itself: the binary, the resource agent, the alert and the units. Sets $pgcm_hash.
collect_pgcm() {
  local tree=$work_dir/pgcm
  install -D -m 0755 "$binary" "$tree/usr/bin/pgcm"
  install -D -m 0755 "$root/resource-agents/pgsql" "$tree/usr/lib/ocf/resource.d/pgcm/pgsql"
  install -D -m 0755 "$root/resource-agents/alert" "$tree/usr/share/pgcm/alert"
  install -D -m 0644 -t "$tree/usr/lib/systemd/system" "$root"/config/pgcm-{supervise,proxy}.service
  pgcm_hash=$(pack "$tree" | sha256sum | cut -d' ' -f1)
  echo "$pgcm_hash" > "$tree/usr/share/pgcm/playground.sha256"
}

install_pgcm() { pack "$work_dir/pgcm" | docker cp - "$(container "$1"):/"; }

restart_pgcm() {
  in_node "$1" sh -c 'systemctl daemon-reload && systemctl try-restart pgcm-supervise pgcm-proxy'
}

# Brings running nodes to the pgcm at hand, and restarts its services if that changed anything.
update_pgcm() {
  local node stale=()
  for node in $(pgcm_hosts); do
    [ "$(in_node "$node" cat /usr/share/pgcm/playground.sha256 2> /dev/null)" = "$pgcm_hash" ] || stale+=("$node")
  done
  [ ${#stale[@]} -gt 0 ] || return 0
  say "installing the new pgcm"
  on_each install_pgcm "${stale[@]}" && on_each restart_pgcm "${nodes[@]}"
}
