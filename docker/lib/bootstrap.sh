# The first boot: Postgres on pg01, clones of it, then everything into Pacemaker's hands.
# shellcheck shell=bash

playground=/usr/local/lib/playground

booted() { in_node "$1" systemctl is-active --quiet basic.target; }
clone_standby() { as_postgres "$1" "$playground/clone-standby" pg01; }
etcd_is_healthy() { in_node pg01 timeout 5 etcdctl endpoint health --endpoints "$1:2379"; }

# True when Pacemaker has elected a coordinator and sees three nodes online, with quorum.
pacemaker_is_ready() {
  in_node pg01 timeout 5 crm_mon -1 --output-as=xml > "$work_dir/crm_mon.xml" \
    && grep -q '<current_dc present="true".*with_quorum="true"' "$work_dir/crm_mon.xml" \
    && [ "$(grep -c '<node name="pg0[123]".* online="true"' "$work_dir/crm_mon.xml")" = 3 ]
}

configure_pacemaker() {
  fill cib.xml pg01 | in_node pg01 cibadmin --modify --allow-create --scope configuration --xml-pipe
}

# The resource agent's rep_mode, as Pacemaker holds it.
current_mode() { in_node pg01 timeout 10 crm_resource --resource Postgresql --get-parameter rep_mode 2> /dev/null; }

mode_is_readable() { [ -n "$(current_mode)" ]; }

# Brings a running cluster to the mode that was asked for, if any was.
switch_mode() {
  [ -n "$wanted_mode" ] || return 0
  wait_until 60 "Pacemaker to tell rep_mode" mode_is_readable
  [ "$(current_mode)" != "$wanted_mode" ] || return 0
  say "switching to rep_mode=$wanted_mode"
  in_node pg01 timeout 20 crm_resource --resource Postgresql --set-parameter rep_mode --parameter-value "$wanted_mode"
}

bootstrap() {
  local node
  for node in "${nodes[@]}"; do wait_until 60 "systemd on $node" booted "$node"; done
  say "the four machines run; making Postgres on pg01 and cloning it"
  as_postgres pg01 "$playground/init-primary" || fail "pg01 could not make its Postgres; see above"
  on_each clone_standby pg02 pg03 || fail "the standbys could not be cloned; see above"
  as_postgres pg01 "$playground/finish-primary" || fail "pg01's Postgres does not stop; see above"
  for node in "${pg_nodes[@]}"; do wait_until 60 "etcd on $node" etcd_is_healthy "$node"; done
  say "waiting for Pacemaker to see its three nodes"
  wait_until 90 "Pacemaker: three nodes online with quorum" pacemaker_is_ready
  configure_pacemaker || fail "Pacemaker refused its configuration; see above"
  echo "$debian" | in_node pg01 sh -c 'mkdir -p /var/lib/playground && cat > /var/lib/playground/finished'
}
