//! A guest of vhost-user without a kernel: it fills and drains its rings as fast as they go, so that what is
//! measured is the back end.
//!
//! Each connection has a pair of queues of its own, and a thread.

mod card;
mod peer;
mod queue;

use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::Bulk;
use crate::serve::{SINK, SOURCE};
use crate::tcp::{Counts, rates};
use card::{Card, Pair};
use peer::Peer;

#[derive(Args)]
pub(crate) struct Rings {
    /// Where the back end listens
    socket: PathBuf,
    /// The MTU of its network
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Sends super-frames; what the server received counts
    TcpOut(Bulk),
    /// Receives
    TcpIn(Bulk),
}

impl Rings {
    /// Runs all connections at once.
    pub(crate) fn run(&self) -> Result<Value> {
        let (bulk, out) = match &self.work {
            Work::TcpOut(bulk) => (bulk, true),
            Work::TcpIn(bulk) => (bulk, false),
        };
        let card = Card::plug_in(&self.socket, bulk.streams)?;
        let counts: Result<Vec<_>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..bulk.streams)
                .map(|number| {
                    let card = &card;
                    scope.spawn(move || self.connection(card.pair(number)?, number, bulk, out))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a connection does not panic")).collect()
        });
        Ok(rates(counts?))
    }

    fn connection(&self, pair: Pair<'_>, number: usize, bulk: &Bulk, out: bool) -> Result<Counts> {
        let times = bulk.times();
        let port = 40_000 + u16::try_from(number)?;
        let mut request = vec![if out { SINK } else { SOURCE }];
        if out {
            for time in times {
                let millis = u32::try_from(time.as_millis()).context("the time is too long")?;
                request.extend(millis.to_le_bytes());
            }
        }
        let mut peer = Peer::connect(pair, bulk.timed.server, port, self.mtu, request)?;
        let counts = if out {
            let answer = peer.send(Counts::LEN)?;
            Counts::from_bytes(answer.first_chunk().context("an answer that is too short")?)
        } else {
            let [warm_up, time] = times;
            peer.receive(warm_up)?;
            let (measured, time) = peer.receive(time)?;
            Counts { measured, time, moved: peer.moved() }
        };
        peer.abort()?;
        Ok(counts)
    }
}
