//! Several etcd nodes that are one cluster: how each is started, and what its operator does to it.

use super::tool;
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, DeleteOptions, Error,
    PutOptions,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the store may hold before etcd raises its NOSPACE alarm: small, so that a test can reach it.
const QUOTA_BYTES: u64 = 32 * 1024 * 1024;
/// How long one call may take; a node may be stopped or cut off.
const CALL: Duration = Duration::from_secs(3);
/// Where the ballast goes that fills the quota.
const BALLAST: &str = "/ballast/";
/// The most pieces of ballast: more than the quota holds.
const PIECES: u64 = QUOTA_BYTES / BALLAST_BYTES as u64 + 8;
/// The size of one; a request may have 1.5 MiB.
const BALLAST_BYTES: usize = 1024 * 1024;

/// A cluster's nodes. It starts none: whoever does has their processes.
#[derive(Clone, Debug)]
pub struct EtcdNodes {
    clients: Vec<String>,
    peers: Vec<String>,
    token: String,
}

impl EtcdNodes {
    /// Nodes at these `host:port`s, for clients and for the other nodes.
    pub fn new(addresses: impl IntoIterator<Item = (String, String)>) -> Self {
        let url = |address: String| format!("http://{address}");
        let (clients, peers) = addresses.into_iter().map(|(c, p)| (url(c), url(p))).unzip();
        Self { clients, peers, token: uuid::Uuid::new_v4().simple().to_string() }
    }

    /// etcd's program.
    pub fn program() -> PathBuf {
        tool("etcd")
    }

    /// The arguments that start a node on its data; the same at each start.
    pub fn arguments(&self, node: usize, data: &Path) -> Vec<String> {
        let all = self.peers.iter().enumerate().map(|(index, peer)| format!("n{index}={peer}"));
        let (client, peer) = (&self.clients[node], &self.peers[node]);
        let flags: [(&str, String); 12] = [
            ("name", format!("n{node}")),
            ("data-dir", data.display().to_string()),
            ("initial-cluster", all.collect::<Vec<_>>().join(",")),
            ("initial-cluster-token", self.token.clone()),
            ("initial-cluster-state", "new".into()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client.clone()),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("quota-backend-bytes", QUOTA_BYTES.to_string()),
            ("log-level", "warn".into()),
            ("log-outputs", "stderr".into()),
        ];
        flags.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect()
    }

    /// The nodes' URLs for clients.
    pub fn endpoints(&self) -> &[String] {
        &self.clients
    }

    /// A client of one node.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn client(&self, node: usize) -> Result<Client, Error> {
        client_of(&self.clients[node]).await
    }

    /// The node that leads, if one that answers knows it.
    pub async fn leader(&self) -> Option<usize> {
        let status = async |node| -> Result<(u64, u64), Error> {
            let status = self.client(node).await?.status().await?;
            Ok((status.header().map_or(0, etcd_client::ResponseHeader::member_id), status.leader()))
        };
        let all = futures::future::join_all((0..self.clients.len()).map(status)).await;
        // A node that was cut off believes in an old leader: the majority counts.
        let mut leaders: Vec<u64> = all.iter().flatten().map(|(_, leader)| *leader).collect();
        leaders.sort_unstable();
        let leader = *leaders.get(leaders.len() / 2).filter(|leader| **leader != 0)?;
        all.iter().position(|status| status.as_ref().is_ok_and(|(member, _)| *member == leader))
    }

    /// Forgets all revisions before the newest. Returns it.
    ///
    /// # Errors
    /// The node doesn't answer, or has no leader.
    pub async fn compact(&self, node: usize) -> Result<i64, Error> {
        let client = self.client(node).await?;
        let mut kv = client.kv_client();
        let head = kv.get("head", None).await?;
        let revision = head.header().map_or(0, etcd_client::ResponseHeader::revision);
        match kv.compact(revision, Some(CompactionOptions::new().with_physical())).await {
            Ok(_) => Ok(revision),
            // Somebody was faster.
            Err(Error::GRpcStatus(status)) if status.message().contains("compacted") => Ok(revision),
            Err(error) => Err(error),
        }
    }

    /// Gives freed space back to the disk; the node answers nobody meanwhile.
    ///
    /// # Errors
    /// The node doesn't answer.
    pub async fn defragment(&self, node: usize) -> Result<(), Error> {
        self.client(node).await?.defragment().await.map(drop)
    }

    /// Raises the NOSPACE alarm for a node, as its own quota would.
    ///
    /// # Errors
    /// The node doesn't answer, or has no leader.
    pub async fn raise_alarm(&self, node: usize) -> Result<(), Error> {
        let mut client = self.client(node).await?;
        let status = client.status().await?;
        let member = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
        let mut options = AlarmOptions::new();
        options.with_member(member);
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(options)).await.map(drop)
    }

    /// Writes until the quota is used up, and the alarm comes by itself. False: it didn't come.
    pub async fn fill(&self, node: usize) -> bool {
        let Ok(client) = self.client(node).await else { return false };
        let mut kv = client.kv_client();
        for piece in 0..PIECES {
            let key = format!("{BALLAST}{piece}");
            match kv.put(key, vec![b'#'; BALLAST_BYTES], None::<PutOptions>).await {
                Err(Error::GRpcStatus(status)) if status.message().contains("space exceeded") => return true,
                // Others take the blame: one may be away just now.
                _ => {}
            }
        }
        false
    }

    /// Whether an alarm is raised.
    ///
    /// # Errors
    /// The node doesn't answer.
    pub async fn is_alarmed(&self, node: usize) -> Result<bool, Error> {
        let mut client = self.client(node).await?;
        let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?;
        Ok(!alarms.alarms().is_empty())
    }

    /// What an operator does about NOSPACE: removes what fills it, compacts, defragments every node,
    /// disarms. Idempotent.
    ///
    /// # Errors
    /// A node doesn't answer: nothing is disarmed then.
    pub async fn free(&self, node: usize) -> Result<(), Error> {
        let mut client = self.client(node).await?;
        client.delete(BALLAST, Some(DeleteOptions::new().with_prefix())).await?;
        self.compact(node).await?;
        for node in 0..self.clients.len() {
            self.defragment(node).await?;
        }
        let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?;
        for alarm in alarms.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await?;
        }
        Ok(())
    }
}

/// A client of the node at this URL, with time limits.
///
/// # Errors
/// It doesn't answer.
pub async fn client_of(endpoint: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new().with_connect_timeout(CALL).with_timeout(CALL);
    Client::connect([endpoint], Some(options)).await
}
