//! `usernet ctl`: asks a daemon over its control socket.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use usernet::{DropInfo, FlowInfo, ForwardInfo, LeaseInfo, PortInfo, QueueInfo};

use crate::args::{CtlArgs, CtlRequest};
use crate::control::{NewForward, Refusal};
use crate::paths;

pub(crate) fn run(args: &CtlArgs) -> Result<ExitCode> {
    let socket = args.control.as_ref().map_or_else(paths::default_control, |path| path.0.clone());
    let (method, path, body) = match &args.request {
        CtlRequest::Leases => (Method::GET, "/v1/leases".to_owned(), None),
        CtlRequest::Flows => (Method::GET, "/v1/flows".to_owned(), None),
        CtlRequest::Forwards => (Method::GET, "/v1/forwards".to_owned(), None),
        CtlRequest::Drops => (Method::GET, "/v1/drops".to_owned(), None),
        CtlRequest::Ports => (Method::GET, "/v1/ports".to_owned(), None),
        CtlRequest::AddForward { rule } => {
            let body = serde_json::to_vec(&NewForward { rule: rule.to_string() })?;
            (Method::POST, "/v1/forwards".to_owned(), Some(body))
        }
        CtlRequest::RemoveForward { id } => (Method::DELETE, format!("/v1/forwards/{id}"), None),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "usernet")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let answer = runtime.block_on(ask(&socket, request))?;

    let shown = if args.json { pretty(&answer)? } else { table(&args.request, &answer)? };
    match io::stdout().write_all(shown.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to stdout")?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(socket: &Path, request: Request<Full<Bytes>>) -> Result<Bytes> {
    let shown = socket.display();
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!("no daemon answers at {shown} (start one with `usernet`, or name its socket with --control)")
    })?;
    let broken = || format!("the daemon at {shown} does not answer as one");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(broken)?;
    let response = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    // The connection is done when the response is: nothing else is asked over it.
    let response = tokio::select! {
        response = response => response.with_context(broken)?,
        Err(error) = connection => return Err(error).with_context(broken),
    };
    if !response.status().is_success() {
        match serde_json::from_slice::<Refusal>(response.body()) {
            Ok(Refusal { error }) => bail!("{error}"),
            Err(_) => bail!("{}: {}", broken(), response.status()),
        }
    }
    Ok(response.into_body())
}

fn pretty(answer: &[u8]) -> Result<String> {
    // Nothing is what there is to say about a forward that has gone.
    if answer.is_empty() {
        return Ok(String::new());
    }
    let value: serde_json::Value = parse(answer)?;
    Ok(format!("{value:#}\n"))
}

fn table(request: &CtlRequest, answer: &[u8]) -> Result<String> {
    let none = || "-".to_owned();
    Ok(match request {
        CtlRequest::Leases => columns(
            &["ADDRESS", "MAC", "HOSTNAME", "PORT", "EXPIRES"],
            parse::<Vec<LeaseInfo>>(answer)?.into_iter().map(|lease| {
                [
                    lease.address.to_string(),
                    lease.mac,
                    lease.hostname.unwrap_or_else(none),
                    lease.port.to_string(),
                    lease.expires_in.map_or_else(none, duration),
                ]
            }),
        ),
        CtlRequest::Flows => columns(
            &["PROTO", "PORT", "GUEST", "PEER", "FROM", "STATE", "OUT", "IN", "IDLE"],
            parse::<Vec<FlowInfo>>(answer)?.into_iter().map(|flow| {
                [
                    flow.protocol,
                    flow.port.map_or_else(none, |port| port.to_string()),
                    flow.guest.to_string(),
                    flow.peer.map_or_else(none, |peer| peer.to_string()),
                    flow.origin,
                    flow.state,
                    flow.bytes_out.to_string(),
                    flow.bytes_in.to_string(),
                    duration(flow.idle),
                ]
            }),
        ),
        CtlRequest::Forwards => forwards(parse(answer)?),
        CtlRequest::Drops => columns(
            &["REASON", "COUNT"],
            parse::<Vec<DropInfo>>(answer)?.into_iter().map(|drop| [drop.reason, drop.count.to_string()]),
        ),
        CtlRequest::Ports => columns(
            &[
                "PORT",
                "LINK",
                "NAME",
                "QUEUES",
                "FRAMES OUT",
                "BYTES OUT",
                "FRAMES IN",
                "BYTES IN",
                "DROPS",
                "ADDRESSES",
                "TROUBLE",
            ],
            parse::<Vec<PortInfo>>(answer)?.into_iter().map(|port| {
                let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
                [
                    port.port.to_string(),
                    port.kind,
                    port.name,
                    queues(&port.queues),
                    port.traffic.rx_frames.to_string(),
                    port.traffic.rx_bytes.to_string(),
                    port.traffic.tx_frames.to_string(),
                    port.traffic.tx_bytes.to_string(),
                    port.drops.to_string(),
                    addresses.join(" "),
                    port.trouble.unwrap_or_else(none),
                ]
            }),
        ),
        CtlRequest::AddForward { .. } => forwards(vec![parse(answer)?]),
        CtlRequest::RemoveForward { .. } => String::new(),
    })
}

/// How many queues there are, and before that how many the guest uses if it leaves some out.
fn queues(queues: &[QueueInfo]) -> String {
    let (used, all) = (queues.iter().filter(|queue| queue.in_use).count(), queues.len());
    if used == all { all.to_string() } else { format!("{used}/{all}") }
}

fn forwards(forwards: Vec<ForwardInfo>) -> String {
    columns(
        &["ID", "PROTO", "HOST", "GUEST", "ACCEPTED"],
        forwards.into_iter().map(|forward| {
            [
                forward.id.to_string(),
                forward.protocol,
                forward.host.to_string(),
                forward.guest.to_string(),
                forward.accepted.to_string(),
            ]
        }),
    )
}

/// A table of text; numbers end where their column does.
fn columns<const N: usize>(header: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.into_iter().map(|text| {
            let number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'/');
            Cell::new(text).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
    // The preset pads each line to the table's width, and begins it with a space of its own: what follows
    // that belongs to a number.
    let bare = |line: &str| format!("{}\n", line.strip_prefix(' ').unwrap_or(line).trim_end());
    table.lines().map(|line| bare(&line)).collect()
}

/// A duration in its two largest units.
fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer).context("the daemon's answer makes no sense: is it another version?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_a_table() {
        let answer = br#"[
            {"port":1,"address":"10.0.2.15","mac":"52:54:00:00:00:01","hostname":"alpine","expires_in":86340},
            {"port":12,"address":"10.0.2.16","mac":"52:54:00:00:00:02","hostname":null,"expires_in":61}
        ]"#;
        let expected = [
            "ADDRESS    MAC                HOSTNAME  PORT  EXPIRES",
            "10.0.2.15  52:54:00:00:00:01  alpine       1  23 h 59 min",
            "10.0.2.16  52:54:00:00:00:02  -           12  1 min 1 s",
        ];
        let shown = table(&CtlRequest::Leases, answer).unwrap();
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_guest_is_one_row_however_many_queues_it_has_and_says_why_it_rests() {
        let answer = br#"[{"port":1,"name":"vm","kind":"vhost-user","addresses":["10.0.2.15","fd00::15"],
            "rx_frames":3,"rx_bytes":300,"tx_frames":4,"tx_bytes":400,"drops":0,
            "queues":[
                {"queue":0,"worker":1,"in_use":true,"rx_frames":3,"rx_bytes":300,"tx_frames":0,"tx_bytes":0},
                {"queue":1,"worker":0,"in_use":false,"rx_frames":0,"rx_bytes":0,"tx_frames":4,"tx_bytes":400}
            ],
            "trouble":"a chain of descriptors has no end"}]"#;
        let shown = table(&CtlRequest::Ports, answer).unwrap();
        let expected = [
            "PORT  LINK        NAME  QUEUES  FRAMES OUT  BYTES OUT  FRAMES IN  BYTES IN  DROPS  ADDRESSES           TROUBLE",
            "   1  vhost-user  vm       1/2           3        300          4       400      0  10.0.2.15 fd00::15  a chain of descriptors has no end",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn numbers_end_where_their_column_does_in_the_first_one_too() {
        let forward = |id: u32, guest: &str| {
            format!(
                r#"{{"id":{id},"protocol":"tcp","host":"127.0.0.1:80","guest":"{guest}","accepted":{id}}}"#
            )
        };
        let answer = format!("[{},{}]", forward(7, "10.0.2.15:80"), forward(123, "[fd00::15]:80"));
        let expected = [
            "ID   PROTO  HOST          GUEST          ACCEPTED",
            "  7  tcp    127.0.0.1:80  10.0.2.15:80          7",
            "123  tcp    127.0.0.1:80  [fd00::15]:80       123",
        ];
        let shown = table(&CtlRequest::Forwards, answer.as_bytes()).unwrap();
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn no_rows_leave_the_header() {
        assert_eq!(table(&CtlRequest::Drops, b"[]").unwrap(), "REASON  COUNT\n");
    }

    #[test]
    fn json_is_passed_on() {
        assert_eq!(pretty(b"[]").unwrap(), "[]\n");
        assert_eq!(pretty(b"").unwrap(), "");
    }
}
