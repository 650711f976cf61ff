#!/bin/bash
# Records `crm_mon` XML from real clusters, one file per situation: see README.md beside this file.
#
#   record.sh DEBIAN AGENT [SITUATION...]
#                             boots a scratch cluster of its own, records the situations (functions
#                             below; all by default), removes it
#   record.sh ours DEBIAN [PREFIX]
#                             walks a running playground (containers [PREFIX-]pg01..pg03) through the
#                             situations that need no cable to be cut; it is healthy again afterwards
#
# DEBIAN is trixie or bookworm, AGENT is pgsql (ocf:heartbeat:pgsql) or paf (ocf:heartbeat:pgsqlms).
# Needs Docker, and the playground's images pgcm-node:trixie and pgcm-node:bookworm.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
nodes=(pg01 pg02 pg03)

die() { printf 'record.sh: %s\n' "$1" >&2; exit 1; }
say() { printf '%(%H:%M:%S)T %s\n' -1 "$1" >&2; }

# The container of a node.
box() { printf '%s%s' "$prefix" "$1"; }
on() { local node=$1; shift; docker exec "$(box "$node")" "$@"; }

# Runs "$@" until it succeeds.
eventually() {
  local limit_s=$1 deadline=$((SECONDS + $1)); shift
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { say "not within $limit_s s: $*"; return 1; }
    sleep 0.2
  done
}

# save SITUATION NODE: what crm_mon says on NODE, whatever its exit status.
save() {
  mkdir -p "$here/$1"
  on "$2" crm_mon --output-as=xml -1 > "$here/$1/$agent-$debian.xml" || true
  say "recorded $1 ($agent, $debian)"
}

# ---------------------------------------------------------------- situations, for any cluster

roles() { on "$1" crm_mon --output-as=xml -1 | grep -oiE 'role="(promoted|unpromoted|master|slave|stopped)"' | sort | uniq -c | tr -s ' \n' ' '; }
has_roles() { [ "$(roles "$1")" = "$2" ]; }
three_up() { has_roles "$1" ' 1 role="Promoted" 2 role="Unpromoted" '; }
promoted() { on "$1" crm_mon --output-as=xml -1 | sed -n '/role="Promoted"/,/<\/resource>/s/.*<node name="\([^"]*\)".*/\1/p' | head -1; }
is_promoted() { [ "$(promoted "$1")" = "$2" ]; }
is_unpromoted() { on "$1" crm_mon --output-as=xml -1 | sed -n '/role="Unpromoted"/,/<\/resource>/p' | grep -q "<node name=\"$2\""; }
sees() { on "$1" crm_mon --output-as=xml -1 | grep -qE "$2"; }
grace() { sleep "$1"; }   # lets scores and failure records settle; nothing is asserted on this time

healthy() { eventually 90 three_up pg02; grace 6; save healthy pg02; }

maintenance() {
  on pg02 crm_attribute --name maintenance-mode --update true
  eventually 20 sees pg02 'maintenance-mode="true"'; grace 1
  save maintenance pg02
  on pg02 crm_attribute --name maintenance-mode --delete
  eventually 30 three_up pg02
}

node_in_standby() {
  on pg02 crm_standby --node pg03 --update on
  eventually 30 sees pg02 'name="pg03"[^>]* standby="true"'; grace 4
  save node-in-standby pg02
  on pg02 crm_standby --node pg03 --delete
  eventually 60 three_up pg02
}

# The postmaster of a standby is killed: Pacemaker notes the failure and starts it again.
failed_actions() {
  # shellcheck disable=SC2016  # the container expands it
  on pg03 sh -c 'kill -9 "$(head -1 '"$pgdata"'/postmaster.pid)"'
  eventually 40 sees pg02 'fail-count="[1-9]'; grace 1
  save failed-actions pg02
  eventually 60 is_unpromoted pg02 pg03 || true
  on pg02 crm_resource --cleanup --resource "$resource" > /dev/null 2>&1
  eventually 60 three_up pg02
}

# catch SITUATION TEST: keeps the first look for which TEST succeeds, a shell command that gets it as its input. All of it
# runs on the node: what is looked for lasts for less than a tenth of a second.
catch() {
  # shellcheck disable=SC2016  # the container expands it
  local look='for _ in $(seq 1 400); do crm_mon --output-as=xml -1 > /tmp/look; sh -c "$0" < /tmp/look && exec cat /tmp/look; done'
  mkdir -p "$here/$1"
  if on pg02 sh -c "$look" "$2" > /tmp/record-caught.xml && [ -s /tmp/record-caught.xml ]; then
    cp /tmp/record-caught.xml "$here/$1/$agent-$debian.xml"; say "recorded $1 ($agent, $debian)"
  else
    say "MISSED $1"
  fi
}

# The promoted role moves off its node; the first look without any promoted instance is kept, and one
# with the ban still there.
mid_switchover() {
  local from
  from=$(promoted pg02)
  on pg02 crm_resource --ban --resource "$clone" --node "$from" --promoted > /dev/null 2>&1
  catch mid-switchover '! grep -q "role=.Promoted"'
  eventually 90 sees pg02 'role="Promoted"'; grace 4
  save leftover-ban pg02
  on pg02 crm_resource --clear --resource "$clone" > /dev/null 2>&1
  "rejoin_$agent" "$from"
  eventually 90 three_up pg02
}

# The promoted role moves; the first look in which its new node is being promoted is kept.
promoting() {
  local from
  from=$(promoted pg02)
  catch promoting 'grep -q "role=.Promoting"' &
  on pg02 crm_resource --ban --resource "$clone" --node "$from" --promoted > /dev/null 2>&1
  wait $!
  eventually 90 sees pg02 'role="Promoted"'; grace 4
  on pg02 crm_resource --clear --resource "$clone" > /dev/null 2>&1
  "rejoin_$agent" "$from"
  eventually 90 three_up pg02
}

# A node that is up and is not $1.
observer() {
  local node
  for node in pg02 pg01 pg03; do
    if [ "$node" != "$1" ] && on "$node" crm_mon --output-as=xml -1 > /dev/null 2>&1; then echo "$node"; return; fi
  done
  echo pg02
}
primary() { promoted "$(observer none)"; }
# Another node than the primary; preferably one that is not synchronous.
spare() { local node p; p=$(primary); for node in pg03 pg01 pg02; do [ "$node" = "$p" ] || { echo "$node"; return; }; done; }

# A machine dies, and is fenced.
standby_lost() {
  local lost other; lost=$(spare); other=$(observer "$lost")
  docker kill "$(box "$lost")" > /dev/null
  eventually 60 sees "$other" "name=\"$lost\"[^>]* online=\"false\"[^>]* unclean=\"false\""; grace 4
  save standby-lost "$other"
}

# The primary's machine dies: first it is unclean, then fenced, then replaced.
fenced_primary() {
  grace 25   # a standby must have been found synchronous, or there is no successor
  local dead other _; dead=$(primary); other=$(observer "$dead")
  docker kill "$(box "$dead")" > /dev/null
  for _ in $(seq 1 600); do
    on "$other" crm_mon --output-as=xml -1 > /tmp/record-unclean.xml || true
    if grep -q "name=\"$dead\".*unclean=\"true\"" /tmp/record-unclean.xml; then
      mkdir -p "$here/primary-unclean"; cp /tmp/record-unclean.xml "$here/primary-unclean/$agent-$debian.xml"
      say "recorded primary-unclean ($agent, $debian)"; break
    fi
  done
  eventually 90 replaced "$other" "$dead"
  grace 4
  save fenced-primary "$other"
}
replaced() { local now; now=$(promoted "$1"); [ -n "$now" ] && [ "$now" != "$2" ]; }

# ---------------------------------------------------------------- a scratch cluster

boot() {
  network=${prefix%-}
  docker network create "$network" > /dev/null
  local node
  for node in "${nodes[@]}"; do
    docker run --detach --init --name "$(box "$node")" --hostname "$node" --network "$network" \
      --cap-add NET_ADMIN --cap-add SYS_NICE --cap-add IPC_LOCK --shm-size 256m \
      --volume /var/run/docker.sock:/run/docker.sock "pgcm-node:$debian" sleep infinity > /dev/null
  done
  if [ "$agent" = paf ]; then
    for node in "${nodes[@]}"; do
      on "$node" sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends resource-agents-paf' > /dev/null 2>&1 &
    done
    wait
  fi
  corosync_conf > /tmp/record-corosync.conf
  for node in "${nodes[@]}"; do
    docker cp -q /tmp/record-corosync.conf "$(box "$node"):/etc/corosync/corosync.conf" 2> /dev/null \
      || docker cp /tmp/record-corosync.conf "$(box "$node"):/etc/corosync/corosync.conf"
    on "$node" sh -c 'mkdir -p /run/postgresql && chown postgres: /run/postgresql'
    # With Pacemaker 2.1.5 `crm_attribute -p` without a name fails (105), and with it the stock agent.
    # shellcheck disable=SC2016  # the container expands it
    on "$node" sed -i 's|crm_attribute -p \$@|crm_attribute -p "$OCF_RESOURCE_INSTANCE" $@|' /usr/lib/ocf/lib/heartbeat/ocf-shellfuncs
    docker cp "$here/../../../docker/image/files/usr/sbin/fence_pgcm_docker" "$(box "$node"):/usr/sbin/"
  done
}

address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(box "$1")"; }
floating() { address pg01 | sed 's/\.[0-9]*$/.250/'; }

corosync_conf() {
  printf 'totem {\n version: 2\n cluster_name: record\n transport: knet\n token: 3000\n}\n'
  printf 'system {\n allow_knet_handle_fallback: yes\n}\n'
  printf 'logging {\n to_stderr: no\n to_logfile: yes\n logfile: /var/log/corosync.log\n}\n'
  printf 'quorum {\n provider: corosync_votequorum\n}\nnodelist {\n'
  local id=0 node
  for node in "${nodes[@]}"; do
    id=$((id + 1))
    printf ' node {\n  ring0_addr: %s\n  name: %s\n  nodeid: %s\n }\n' "$(address "$node")" "$node" "$id"
  done
  printf '}\n'
}

start_cluster() {
  local node
  for node in "${@:-${nodes[@]}}"; do
    docker exec -d "$(box "$node")" sh -c 'corosync -f & sleep 1; exec pacemakerd -f >> /var/log/pacemakerd.out 2>&1'
  done
}

# Before an election has ended there is no DC.
no_dc() {
  start_cluster
  local to=/tmp/record-nodc.xml _
  for _ in $(seq 1 200); do
    on pg01 crm_mon --output-as=xml -1 > "$to" 2> /dev/null || true
    if grep -q '<current_dc present="false"' "$to"; then
      mkdir -p "$here/no-dc"; cp "$to" "$here/no-dc/$agent-$debian.xml"; say "recorded no-dc ($agent, $debian)"; break
    fi
  done
}

postgres() {
  local bin; bin=$(on pg01 sh -c 'echo /usr/lib/postgresql/*/bin')
  pgbin=$bin
  on pg01 sh -c "install -d -o postgres -g postgres -m 700 $pgdata && cd / && su postgres -c '$bin/initdb -D $pgdata -A trust > /dev/null'"
  on pg01 sh -c "printf '%s\n' \"listen_addresses = '*'\" 'wal_level = replica' 'hot_standby = on' 'wal_keep_size = 512MB' 'max_wal_senders = 10' \"unix_socket_directories = '/var/run/postgresql'\" >> $pgdata/postgresql.conf"
  on pg01 sh -c "printf 'host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n' >> $pgdata/pg_hba.conf"
  "conf_$agent" pg01
  on pg01 su postgres -c "$bin/pg_ctl -D $pgdata -w -l /tmp/pg.log start" > /dev/null
  local node
  for node in pg02 pg03; do
    on "$node" sh -c "install -d -o postgres -g postgres -m 700 $pgdata && su postgres -c '$bin/pg_basebackup -h $(address pg01) -D $pgdata -X stream -c fast'"
    "standby_$agent" "$node"
  done
  on pg01 su postgres -c "$bin/pg_ctl -D $pgdata -w -m fast stop" > /dev/null
}

crm() { on pg01 crm --force "$@" 2> >(grep -viE 'warning|deprecated' >&2 || true); }

configure() {
  local node
  # The agents need somewhere to reach the primary: what pgcm does away with.
  {
    printf 'property stonith-enabled=true stonith-action=off no-quorum-policy=freeze\n'
    printf 'rsc_defaults resource-stickiness=100 migration-threshold=5\n'
    for node in "${nodes[@]}"; do
      printf 'primitive fence-%s stonith:fence_pgcm_docker params plug=%s pcmk_host_list=%s\n' "$node" "$(box "$node")" "$node"
      printf 'location fence-%s-elsewhere fence-%s -inf: %s\n' "$node" "$node" "$node"
    done
    printf 'primitive floating ocf:heartbeat:IPaddr2 params ip=%s cidr_netmask=16 nic=eth0 op monitor interval=10s\n' "$(floating)"
    "primitive_$agent"
    printf 'colocation floating-with-primary inf: floating %s:%s\n' "$clone" "$promoted_name"
    printf 'order promote-then-floating Mandatory: %s:promote floating:start symmetrical=false\n' "$clone"
    printf 'order demote-then-floating Mandatory: %s:demote floating:stop symmetrical=false\n' "$clone"
  } > /tmp/record.crm
  docker cp /tmp/record.crm "$(box pg01):/tmp/record.crm"
  on pg01 crm --force configure load update /tmp/record.crm > /tmp/record-crm.log 2>&1 || { cat /tmp/record-crm.log >&2; die "crm refused the configuration"; }
}

conf_pgsql() { on "$1" sh -c "printf 'restart_after_crash = off\nsynchronous_commit = on\n' >> $pgdata/postgresql.conf"; }
standby_pgsql() { on "$1" su postgres -c "touch $pgdata/standby.signal"; }
primitive_pgsql() {
  printf 'primitive %s ocf:heartbeat:pgsql params pgctl=%s/pg_ctl psql=%s/psql pgdata=%s rep_mode=sync node_list="pg01 pg02 pg03" master_ip=%s repuser=postgres restart_on_promote=false check_wal_receiver=true socketdir=/var/run/postgresql tmpdir=/tmp/pgsql-agent ' \
    "$resource" "$pgbin" "$pgbin" "$pgdata" "$(floating)"
  printf 'op start timeout=180s op stop timeout=60s op promote timeout=60s op demote timeout=60s op monitor interval=4s timeout=60s op monitor interval=3s timeout=60s role=%s op notify timeout=30s\n' "$promoted_name"
  printf 'clone %s %s meta promotable=true notify=true interleave=true promoted-max=1 clone-max=3\n' "$clone" "$resource"
}
# After a demotion the stock agent leaves its lock file behind.
rejoin_pgsql() {
  on "$1" rm -f /tmp/pgsql-agent/PGSQL.lock /var/lib/pgsql/tmp/PGSQL.lock
  on pg02 crm_resource --cleanup --resource "$resource" > /dev/null 2>&1
}

conninfo_paf() { printf "primary_conninfo = 'host=%s user=postgres application_name=%s'\\\\nrecovery_target_timeline = latest" "$(floating)" "$1"; }
conf_paf() { on "$1" sh -c "printf \"$(conninfo_paf "$1")\\n\" >> $pgdata/postgresql.conf"; }
standby_paf() {
  on "$1" sh -c "sed -i '/^primary_conninfo/d;/^recovery_target_timeline/d' $pgdata/postgresql.conf"
  conf_paf "$1"
  on "$1" su postgres -c "touch $pgdata/standby.signal"
}
primitive_paf() {
  printf 'primitive %s ocf:heartbeat:pgsqlms params bindir=%s pgdata=%s ' "$resource" "$pgbin" "$pgdata"
  printf 'op start timeout=180s op stop timeout=60s op promote timeout=60s op demote timeout=120s op monitor interval=5s timeout=40s role=%s op monitor interval=6s timeout=40s role=%s op notify timeout=60s\n' "$promoted_name" "$unpromoted_name"
  printf 'clone %s %s meta promotable=true notify=true interleave=true\n' "$clone" "$resource"
}
rejoin_paf() { on pg02 crm_resource --cleanup --resource "$resource" > /dev/null 2>&1; }

# The primary's network is cut; fencing is made to fail, so that both sides can be looked at.
no_quorum() {
  local node primary other
  primary=$(primary); other=$(observer "$primary")
  for node in "${nodes[@]}"; do on pg01 crm_resource --resource "fence-$node" --set-parameter socket --parameter-value /run/gone > /dev/null; done
  grace 3
  for node in "${nodes[@]}"; do
    [ "$node" = "$primary" ] || on "$primary" sh -c "iptables -A INPUT -s $(address "$node") -j DROP; iptables -A OUTPUT -d $(address "$node") -j DROP"
  done
  eventually 40 sees "$primary" 'with_quorum="false"'
  save no-quorum-minority "$primary"
  eventually 40 sees "$other" "name=\"$primary\"[^>]* online=\"false\""
  save no-quorum-majority "$other"
  for node in "${nodes[@]}"; do on "$other" crm_resource --resource "fence-$node" --delete-parameter socket > /dev/null 2>&1; done
}

scratch() {
  debian=$1 agent=$2 prefix="rec-$1-$2-" pgdata=/var/lib/postgresql/data
  resource=Postgresql clone=msPostgresql promoted_name=Promoted unpromoted_name=Unpromoted
  docker image inspect "pgcm-node:$debian" > /dev/null || die "image pgcm-node:$debian is missing; run ./start-cluster.sh once"
  # shellcheck disable=SC2064
  trap "docker rm -f $(for n in "${nodes[@]}"; do box "$n"; echo -n ' '; done) > /dev/null 2>&1; docker network rm ${prefix%-} > /dev/null 2>&1" EXIT
  boot
  postgres
  no_dc
  eventually 90 sees pg01 '<current_dc present="true"[^>]*with_quorum="true"'
  configure
  eventually 180 three_up pg02
  local situation
  for situation in "${@:3}"; do
    "$situation" || { say "FAILED $situation"; again || say "not healthy again"; }
  done
}

# `--as-xml` of Pacemaker before 3.0 prints the old root element.
legacy() {
  mkdir -p "$here/legacy"
  on pg02 crm_mon --as-xml > "$here/legacy/$agent-$debian.xml" || true
}

# What crm_mon prints when Pacemaker does not run, with its status on the first line.
stopped_tool() {
  local status=0
  mkdir -p "$here/pacemaker-stopped"
  docker run --rm --entrypoint crm_mon "pgcm-node:$debian" --output-as=xml -1 \
    > "$here/pacemaker-stopped/$agent-$debian.xml" 2> /tmp/record-stderr || status=$?
  say "pacemaker-stopped: status $status, stderr: $(cat /tmp/record-stderr)"
}

# Mends everything: the cable, dead machines, failures.
again() {
  local node
  for node in "${nodes[@]}"; do on "$node" iptables -F 2> /dev/null || true; done
  grace 15   # fencing that was delayed by the cut happens now
  for node in "${nodes[@]}"; do
    docker start "$(box "$node")" > /dev/null
    on "$node" sh -c 'mkdir -p /run/postgresql && chown postgres: /run/postgresql; rm -f /tmp/pgsql-agent/PGSQL.lock'
    on "$node" pgrep -x corosync > /dev/null || start_cluster "$node"
  done
  eventually 60 sees pg02 'with_quorum="true"'
  grace 5
  on pg02 crm_resource --cleanup > /dev/null 2>&1 || true
  eventually 120 three_up pg02
}

ours() {
  debian=$1 agent=pgcm prefix="${2:+$2-}" resource=Postgresql clone=msPostgresql
  pgdata=${PGDATA:-$(on pg01 crm_resource --resource "$resource" --get-parameter pgdata)}
  for situation in healthy maintenance node_in_standby failed_actions mid_switchover promoting; do
    "$situation" || say "FAILED $situation"
  done
}
rejoin_pgcm() { :; }

case "${1:-}" in
  ours) ours "${2:?DEBIAN is missing}" "${3:-}" ;;
  trixie|bookworm)
    [ $# -gt 2 ] || set -- "$1" "${2:?AGENT is missing}" healthy maintenance node_in_standby failed_actions \
      mid_switchover legacy stopped_tool no_quorum again standby_lost again fenced_primary
    scratch "$@" ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
