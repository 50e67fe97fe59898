//! The verbs that ask a running cluster, and how their answers look.

use anyhow::Context;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use proto::pb::ops::v1::ops_client::OpsClient;
use proto::pb::ops::v1::{HandlesRequest, StatusRequest, StatusResponse};
use serde_json::json;
use statedb::{Open, OpenState, Oplock, Timestamp};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cli::{Output, Target};
use crate::config::{Config, is_host_and_port};

/// How long an operator waits for a node that does not answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Which opens to list.
#[derive(Debug)]
pub struct HandlesFilter {
    /// Only of this share.
    pub share: Option<String>,
    /// Only on this node.
    pub node: Option<u64>,
    /// Only those whose clients are away.
    pub disconnected: bool,
}

/// `holdfast status`.
///
/// # Errors
///
/// If the node cannot be asked.
pub fn status(target: &Target) -> anyhow::Result<()> {
    let response = asking(async {
        let Node { address, mut client } = connect(target).await?;
        let response = client.status(StatusRequest {}).await.map_err(|status| no_answer(&address, status))?;
        Ok(response.into_inner())
    })?;
    print(match target.output {
        Output::Json => pretty(&status_json(&response)),
        Output::Table => status_tables(&response),
    })
}

/// `holdfast handles`.
///
/// # Errors
///
/// If the node cannot be asked.
pub fn handles(target: &Target, filter: HandlesFilter) -> anyhow::Result<()> {
    let request = HandlesRequest {
        share: filter.share,
        node_id: filter.node,
        disconnected: filter.disconnected.then_some(true),
        ..HandlesRequest::default()
    };
    let (now, opens) = asking(async {
        let Node { address, mut client } = connect(target).await?;
        let failed = |status| no_answer(&address, status);
        let mut stream = client.handles(request).await.map_err(failed)?.into_inner();
        let (mut now, mut opens) = (Timestamp::default(), Vec::new());
        // A listing may take its time as a whole; its next part may not.
        while let Some(message) = tokio::time::timeout(ANSWERS_WITHIN, stream.message())
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the listing has stopped in the middle")))
            .map_err(failed)?
        {
            now = Timestamp(message.now_ms);
            for open in message.opens {
                opens.push(Open::try_from(open).context("the node sent an open that makes no sense")?);
            }
        }
        Ok((now, opens))
    })?;
    print(match target.output {
        Output::Json => pretty(&opens.iter().map(|open| open_json(open, now)).collect()),
        Output::Table => handles_table(&opens, now),
    })
}

fn asking<T>(question: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(question)
}

/// The node that is asked.
struct Node {
    address: String,
    client: OpsClient<Channel>,
}

async fn connect(target: &Target) -> anyhow::Result<Node> {
    let address = match &target.address {
        Some(address) => address.clone(),
        None => {
            let config = Config::load(&target.config)
                .context("which node to ask? Give --address HOST:PORT or --config FILE")?;
            config.member().context("the configuration does not name its own node")?.address.clone()
        }
    };
    anyhow::ensure!(is_host_and_port(&address), "{address:?} is not host:port");
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(ANSWERS_WITHIN)
        .timeout(ANSWERS_WITHIN);
    let channel = endpoint.connect().await.with_context(|| format!("no holdfast answers at {address}"))?;
    Ok(Node { address, client: OpsClient::new(channel) })
}

/// Tells silence from an answer that is none.
fn no_answer(address: &str, status: Status) -> anyhow::Error {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => {
            anyhow::anyhow!("no answer from {address} within {ANSWERS_WITHIN:?}")
        }
        code => {
            anyhow::anyhow!(
                "what answers at {address} is not a holdfast that is well: {code}: {}",
                status.message()
            )
        }
    }
}

fn print(text: String) -> anyhow::Result<()> {
    use std::io::Write;
    // A reader that has seen enough, such as `head`, is no error.
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}

fn status_json(status: &StatusResponse) -> serde_json::Value {
    json!({
        "node_id": status.node_id,
        "version": status.version,
        "role": status.role,
        "term": status.term,
        "leader": status.leader,
        "last_log_index": status.last_log_index,
        "applied_index": status.applied_index,
        "now_ms": status.now_ms,
        "quorum_age_ms": status.quorum_age_ms,
        "opens": status.opens,
        "disconnected_opens": status.disconnected_opens,
        "nodes": status.nodes.iter().map(|node| json!({
            "node_id": node.node_id,
            "address": node.address,
            "incarnation": node.incarnation,
            "up": node.up,
            "down_since_ms": node.down_since_ms,
            "opens": node.opens,
        })).collect::<Vec<_>>(),
        "shares": status.shares.iter().map(|share| json!({
            "share": share.share,
            "node_id": share.owner.map(|owner| owner.node_id),
            "incarnation": share.owner.map(|owner| owner.incarnation),
        })).collect::<Vec<_>>(),
        "warnings": status.warnings,
    })
}

fn status_tables(status: &StatusResponse) -> String {
    let leader = status.leader.map_or("unknown".to_owned(), |leader| format!("node {leader}"));
    let mut text = format!(
        "node {} ({}, version {}), leader {leader}, term {}, applied {} of {}\n{} opens, {} of them waiting for their clients\n",
        status.node_id,
        status.role,
        status.version,
        status.term,
        number_or_dash(status.applied_index),
        number_or_dash(status.last_log_index),
        status.opens,
        status.disconnected_opens,
    );
    let mut nodes = table(["node", "address", "smb service", "incarnation", "opens"]);
    for node in &status.nodes {
        let service = match (node.up, node.incarnation) {
            (true, _) => "up",
            (false, 0) => "never seen",
            (false, _) => "down",
        };
        let cells = [&node.node_id as &dyn ToString, &node.address, &service, &node.incarnation, &node.opens];
        nodes.add_row(cells.map(ToString::to_string));
    }
    text += &format!("\n{nodes}\n");
    if !status.shares.is_empty() {
        let mut shares = table(["share", "served by"]);
        for share in &status.shares {
            let owner = share.owner.map_or("-".to_owned(), |owner| format!("node {}", owner.node_id));
            shares.add_row([printable(&share.share), owner]);
        }
        text += &format!("\n{shares}\n");
    }
    for warning in &status.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    text
}

fn open_json(open: &Open, now: Timestamp) -> serde_json::Value {
    let description = &open.description;
    let (state, node) = match open.state {
        OpenState::Connected { owner } => ("connected", Some(owner.node.0)),
        OpenState::Disconnected { keeper, .. } => ("disconnected", keeper.map(|keeper| keeper.node.0)),
    };
    json!({
        "durable_file_id": description.durable_file_id.0,
        "create_guid": description.create_guid.to_string(),
        "client_guid": description.client_guid.to_string(),
        "durable_owner": description.durable_owner.to_string(),
        "share": description.share.as_str(),
        "path": description.path,
        "file": description.file.to_string(),
        "granted_access": format!("{:#010x}", description.granted_access.0),
        "share_access": description.share_access.0,
        "oplock": description.oplock.to_string(),
        "lease_key": match description.oplock {
            Oplock::Lease(lease) => Some(lease.key.to_string()),
            _ => None,
        },
        "durability": description.durability.to_string(),
        "durable_open_timeout_ms": description.durable_open_timeout.0,
        "byte_range_locks": description.byte_range_locks.iter().map(|lock| json!({
            "offset": lock.offset, "length": lock.length, "exclusive": lock.exclusive,
        })).collect::<Vec<_>>(),
        "state": state,
        "node_id": node,
        "expires_in_ms": open.deadline().map(|deadline| deadline.since(now).0),
    })
}

fn handles_table(opens: &[Open], now: Timestamp) -> String {
    let mut handles = table(["id", "share", "path", "kind", "oplock", "locks", "state"]);
    for open in opens {
        let description = &open.description;
        let state = match (open.state, open.deadline()) {
            (OpenState::Connected { owner }, _) => format!("connected, node {}", owner.node),
            (_, Some(deadline)) => format!("waits {} more", deadline.since(now)),
            (_, None) => "waits".to_owned(),
        };
        handles.add_row([
            format!("{:08x}", description.durable_file_id.0),
            printable(description.share.as_str()),
            printable(&description.path),
            description.durability.to_string(),
            description.oplock.to_string(),
            description.byte_range_locks.len().to_string(),
            state,
        ]);
    }
    format!("{handles}\n{} opens\n", opens.len())
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A name that a client has chosen, without what a terminal would obey.
fn printable(name: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_unicode().to_string() } else { c.to_string() };
    name.chars().map(escaped).collect()
}

fn number_or_dash(number: Option<u64>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}
