//! The CIB in a file, and the stand-ins of Pacemaker's tools that work on it.

use std::{fs, os::unix::fs::PermissionsExt};

use super::cluster::{Cluster, command, run, text};

const CIB: &str = r#"<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.0" epoch="1"
 num_updates="0" admin_epoch="0"><configuration><crm_config/><nodes><node id="1" uname="pg01"/>
<node id="2" uname="pg02"/><node id="3" uname="pg03"/></nodes><resources/><constraints/>
</configuration><status>
<node_state id="1" uname="pg01" in_ccm="true" crmd="online" join="member" expected="member"/>
<node_state id="2" uname="pg02" in_ccm="true" crmd="online" join="member" expected="member"/>
<node_state id="3" uname="pg03" in_ccm="true" crmd="online" join="member" expected="member"/>
</status></cib>"#;

impl Cluster {
    /// A CIB of three nodes that are all online, and the tools.
    pub(crate) fn write_cib(&self) {
        for (name, text) in [
            ("cibadmin", include_str!("stand-ins/cibadmin")),
            ("crm_attribute", include_str!("stand-ins/crm_attribute")),
            ("attrd_updater", include_str!("stand-ins/attrd_updater")),
            ("crm_node", include_str!("stand-ins/crm_node")),
        ] {
            let path = self.path("bin").join(name);
            fs::create_dir_all(self.path("bin")).expect("created");
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        fs::write(self.path("cib.xml"), CIB).expect("written");
    }

    /// The value of a node attribute, transient or permanent.
    pub(crate) fn attribute(&self, node: &str, name: &str) -> Option<String> {
        let id = node.trim_start_matches("pg0");
        let cib = fs::read_to_string(self.path("cib.xml")).expect("a CIB");
        [format!("id=\"status-{id}-{name}\""), format!("id=\"nodes-{id}-{name}\"")].iter().find_map(
            |id| {
                let (_, after) = cib.split_once(id.as_str())?;
                let (_, value) = after.split_once("value=\"")?;
                value.split_once('"').map(|(value, _)| value.to_owned())
            },
        )
    }

    /// Sets a transient attribute, as another node would.
    pub(crate) fn set_attribute(&self, node: &str, name: &str, value: &str) {
        let mut set = command(&text(&self.path("bin").join("attrd_updater")));
        set.env("PGCM_TEST_DIR", self.path(""))
            .env("PGCM_TEST_WITNESS", "/dev/null")
            .env("CIB_file", self.path("cib.xml"))
            .args(["--name", name, &format!("--update={value}"), "--node", node]);
        run(set);
    }

    /// Takes a node out of the cluster for good.
    pub(crate) fn remove_node(&self, node: &str) {
        for xpath in [format!("//node[@uname='{node}']"), format!("//node_state[@uname='{node}']")]
        {
            let mut delete = command("/usr/sbin/cibadmin");
            delete
                .env("CIB_file", self.path("cib.xml"))
                .args(["--delete", "--force", "--xpath", &xpath]);
            run(delete);
        }
    }

    /// A node has left the membership; `expected` is `member` when it was lost and not fenced yet, else `down`.
    pub(crate) fn leaves(&self, node: &str, expected: &str) {
        let id = node.trim_start_matches("pg0");
        let state = format!(
            "<node_state id=\"{id}\" uname=\"{node}\" in_ccm=\"false\" crmd=\"offline\" join=\"down\" \
             expected=\"{expected}\"/>"
        );
        let mut modify = command("/usr/sbin/cibadmin");
        modify.env("CIB_file", self.path("cib.xml")).args([
            "--modify",
            "--scope",
            "status",
            "--xml-text",
            &state,
        ]);
        run(modify);
    }

    /// Deletes what does not outlive a node's membership, as a power loss of all nodes does.
    pub(crate) fn forget_transient_attributes(&self) {
        let _ = fs::remove_dir_all(self.path("known-attributes"));
        self.lose_transient_attributes();
    }

    /// Deletes them in the CIB alone, as a controller that dies does: the attribute daemon knows them still.
    pub(crate) fn lose_transient_attributes(&self) {
        let path = self.path("cib.xml");
        let mut cib = fs::read_to_string(&path).expect("a CIB");
        let (open, close) = ("<transient_attributes", "</transient_attributes>");
        while let Some((before, rest)) = cib.split_once(open) {
            let (_, after) = rest.split_once(close).expect("closed");
            cib = format!("{before}{after}");
        }
        // A digest of the old text would be missed.
        fs::write(&path, cib).expect("written");
        let _ = fs::remove_file(path.with_extension("xml.sig"));
    }

    /// The recorded calls of Pacemaker's tools since the last [`Self::forget_calls`].
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn forget_calls(&self) {
        let _ = fs::remove_file(self.path("calls"));
    }
}
