//! The verbs that ask a running cluster, and how their answers look.

use anyhow::Context;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use proto::pb::events::v1::WatchRequest;
use proto::pb::events::v1::event_service_client::EventServiceClient;
use proto::pb::events::v1::watch_response::Response as Told;
use proto::pb::ops::v1::ops_client::OpsClient;
use proto::pb::ops::v1::{HandlesRequest, StatusRequest, StatusResponse};
use serde_json::json;
use statedb::{Event, EventKind, Open, OpenState, OplockState, Timestamp};
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
        let Node { address, channel } = connect(target).await?;
        let mut client = OpsClient::new(channel);
        let response = client.status(StatusRequest {}).await.map_err(|status| no_answer(&address, status))?;
        Ok(response.into_inner())
    })?;
    print(match target.output {
        Output::Json => pretty(&status_json(&response)),
        Output::Table => status_tables(&response),
    })
    .map(drop)
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
        let Node { address, channel } = connect(target).await?;
        let mut client = OpsClient::new(channel);
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
    .map(drop)
}

/// `holdfast events`.
///
/// # Errors
///
/// If the node cannot be asked, or ends while it is followed.
pub fn events(target: &Target, after: Option<u64>, follow: bool) -> anyhow::Result<()> {
    asking(async {
        let Node { address, channel } = connect(target).await?;
        let failed = |status| no_answer(&address, status);
        let status = OpsClient::new(channel.clone()).status(StatusRequest {}).await.map_err(failed)?;
        let next_event = status.into_inner().next_event;
        // From the beginning, if nothing else is said: events are counted from 1.
        let after_sequence = if follow { after } else { after.or(Some(0)) };
        let is_all = |seen: u64| !follow && seen >= next_event;
        if is_all(after_sequence.map_or(0, |seen| seen.saturating_add(1))) {
            return Ok(());
        }
        let request = WatchRequest { after_sequence, incarnation: None };
        let mut stream = EventServiceClient::new(channel).watch(request).await.map_err(failed)?.into_inner();
        loop {
            let message = if follow {
                stream.message().await
            } else {
                let message = tokio::time::timeout(ANSWERS_WITHIN, stream.message()).await;
                message.unwrap_or_else(|_| {
                    Err(Status::deadline_exceeded("the events have stopped in the middle"))
                })
            };
            let next = match message.map_err(failed)?.and_then(|message| message.response) {
                Some(Told::Event(event)) => {
                    let event =
                        Event::try_from(event).context("the node sent an event that makes no sense")?;
                    if print(event_line(&event, target.output))? == Reader::Gone {
                        return Ok(());
                    }
                    event.sequence.saturating_add(1)
                }
                Some(Told::Resync(resync)) => {
                    if after.is_some() {
                        // Beside what was asked for, which a program may read.
                        eprintln!("holdfast: events before {} are not kept", resync.next_sequence);
                    }
                    resync.next_sequence
                }
                Some(_) => continue,
                None => anyhow::bail!("{address} has ended"),
            };
            if is_all(next) {
                return Ok(());
            }
        }
    })
}

fn asking<T>(question: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(question)
}

/// The node that is asked.
struct Node {
    address: String,
    channel: Channel,
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
    Ok(Node { address, channel })
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

/// Whether somebody reads what is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Reads,
    /// It has seen enough, as `head` has at some point, which is no error.
    Gone,
}

pub(crate) fn print(text: String) -> anyhow::Result<Reader> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        written => Ok(written.map(|()| Reader::Reads)?),
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
        "waiting_requests": status.waiting_requests,
        "breaks_under_way": status.breaks_under_way,
        "deletes_pending": status.deletes_pending,
        "contradictions": status.contradictions,
        "conflicts_refused": status.conflicts_refused,
        "next_event": status.next_event,
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
        "node {} ({}, version {}), leader {leader}, term {}, applied {} of {}\n\
         {} opens, {} of them waiting for their clients\n\
         {} requests wait, {} breaks are under way, {} files are to be deleted\n\
         next event {}; since this node started {} contradictions, {} conflicts refused\n",
        status.node_id,
        status.role,
        status.version,
        status.term,
        number_or_dash(status.applied_index),
        number_or_dash(status.last_log_index),
        status.opens,
        status.disconnected_opens,
        status.waiting_requests,
        status.breaks_under_way,
        status.deletes_pending,
        status.next_event,
        status.contradictions,
        status.conflicts_refused,
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
        OpenState::Connected { owner, .. } => ("connected", Some(owner.node.0)),
        OpenState::Disconnected { keeper, .. } => ("disconnected", keeper.map(|keeper| keeper.node.0)),
    };
    let lease = description.oplock.lease();
    json!({
        "durable_file_id": description.durable_file_id.0,
        "create_guid": description.create_guid.to_string(),
        "client_guid": description.client_guid.to_string(),
        "durable_owner": description.durable_owner.to_string(),
        "share": description.share.as_str(),
        "path": description.path.as_ref(),
        "file": description.file.to_string(),
        "granted_access": format!("{:#010x}", description.granted_access.0),
        "share_access": description.share_access.0,
        "oplock": description.oplock.to_string(),
        "oplock_state": description.oplock_state.to_string(),
        "lease_key": lease.map(|lease| lease.key.to_string()),
        "lease_epoch": lease.map(|lease| lease.epoch.0),
        "durability": description.durability.to_string(),
        "durable_open_timeout_ms": description.durable_open_timeout.0,
        "byte_range_locks": description.byte_range_locks.iter().map(|lock| json!({
            "offset": lock.offset, "length": lock.length, "exclusive": lock.exclusive,
        })).collect::<Vec<_>>(),
        "delete_on_close": description.delete_on_close,
        "state": state,
        "session": open.session().map(|session| session.to_string()),
        "node_id": node,
        "expires_in_ms": open.deadline().map(|deadline| deadline.since(now).0),
    })
}

fn handles_table(opens: &[Open], now: Timestamp) -> String {
    let mut handles = table(["id", "share", "path", "kind", "oplock", "locks", "session", "state"]);
    for open in opens {
        let description = &open.description;
        let state = match (open.state, open.deadline()) {
            (OpenState::Connected { owner, .. }, _) => format!("connected, node {}", owner.node),
            (_, Some(deadline)) => format!("waits {} more", deadline.since(now)),
            (_, None) => "waits".to_owned(),
        };
        let oplock = match description.oplock_state {
            OplockState::Held => description.oplock.to_string(),
            OplockState::Breaking => format!("{}, breaking", description.oplock),
        };
        handles.add_row([
            format!("{:08x}", description.durable_file_id.0),
            printable(description.share.as_str()),
            printable(&description.path),
            description.durability.to_string(),
            oplock,
            description.byte_range_locks.len().to_string(),
            open.session().map_or("-".to_owned(), |session| session.to_string()),
            state,
        ]);
    }
    format!("{handles}\n{} opens\n", opens.len())
}

/// One event. An operator may follow them for days, so there is no table to be laid out in the end.
fn event_line(event: &Event, output: Output) -> String {
    match output {
        Output::Json => event_json(event).to_string(),
        Output::Table => {
            let to = event.to.map_or("-".to_owned(), |to| to.to_string());
            format!("{:>10}  {to:<8}  {}", event.sequence, printable(&event.kind.to_string()))
        }
    }
}

fn event_json(event: &Event) -> serde_json::Value {
    let owner =
        |owner: statedb::Owner| json!({ "node_id": owner.node.0, "incarnation": owner.incarnation.0 });
    let (kind, what) = match &event.kind {
        EventKind::OplockBreak { open, to, ack_until } => (
            "oplock-break",
            json!({
                "durable_file_id": open.0, "to": to.to_string(), "ack_until_ms": ack_until.map(|until| until.0),
            }),
        ),
        EventKind::LeaseBreak { lease, from, to, epoch, version: _, ack_until } => (
            "lease-break",
            json!({
                "client_guid": lease.client_guid.to_string(), "lease_key": lease.key.to_string(),
                "from": from.to_string(), "to": to.to_string(), "epoch": epoch.0,
                "ack_until_ms": ack_until.map(|until| until.0),
            }),
        ),
        EventKind::RequestFinished { sequence, outcome } => {
            ("request-finished", json!({ "sequence": sequence, "outcome": outcome.to_string() }))
        }
        EventKind::OpenClosed { open, reason } => {
            ("open-closed", json!({ "durable_file_id": open.0, "reason": reason.to_string() }))
        }
        EventKind::SessionReplaced { session } => {
            ("session-replaced", json!({ "session": session.to_string() }))
        }
        EventKind::DeleteFile { file, share, path } => (
            "delete-file",
            json!({ "file": file.to_string(), "share": share.as_str(), "path": path.as_ref() }),
        ),
        EventKind::NodeUp { owner: up } => ("node-up", json!({ "owner": owner(*up) })),
        EventKind::NodeDown { owner: down, disconnected, closed } => {
            ("node-down", json!({ "owner": owner(*down), "disconnected": disconnected, "closed": closed }))
        }
        EventKind::ConflictRefused { open, with, holder } => (
            "conflict-refused",
            json!({ "durable_file_id": open.0, "with": with.0, "holder": holder.map(owner) }),
        ),
        EventKind::Contradiction { open, with } => {
            ("contradiction", json!({ "durable_file_id": open.0, "with": with.0 }))
        }
    };
    json!({ "sequence": event.sequence, "to": event.to.map(owner), "kind": kind, "what": what })
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
