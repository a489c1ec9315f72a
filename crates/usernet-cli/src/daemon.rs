//! The daemon: a network that guests plug in to until a signal ends it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use usernet::Network;

use crate::args::{ControlPath, DaemonArgs};
use crate::endpoint::Endpoint;
use crate::guests::{Speaks, invitation, keep_connected, welcome};
use crate::listen::Listener;
use crate::paths::{Folder, MadeFile, default_control, default_folder};
use crate::{control, sys};

pub(crate) fn run(args: &DaemonArgs) -> Result<ExitCode> {
    let ready = args.ready_fd.map(|number| {
        sys::inherited_fd(number)
            .with_context(|| format!("--ready-fd {number}: this process was not given such a descriptor"))
    });
    let ready = ready.transpose()?;
    let config = args.config()?;
    let mtu = config.mtu;

    // From here on a signal is noted, so that whatever has been made until then is unmade.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _runtime = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };

    // Dropped in reverse: the files before the folder that they are in.
    let (mut listen, connect) = (args.listeners(), args.listening());
    let nowhere = listen.is_empty() && connect.is_empty();
    let folder = || Folder::make(default_folder(), "--listen and --control name other places");
    let _folder = (nowhere || args.control.is_none()).then(folder).transpose()?;
    if nowhere {
        listen.push((Endpoint::Unix(default_folder().join("guest.sock")), Speaks::Frames));
    }
    let mut sockets = Vec::new();
    let mut files = Vec::new();
    for (endpoint, speaks) in &listen {
        let (listener, file) = Listener::bind(endpoint, speaks.option())?;
        sockets.push((listener, *speaks));
        files.extend(file);
    }
    let control = bind_control(args.control.as_ref(), &mut files)?;
    if let Some(path) = &args.pid_file {
        files.push(write_pid(path)?);
    }
    let invitations: String =
        sockets.iter().map(|(listener, speaks)| invitation(listener.endpoint(), *speaks, mtu)).collect();

    let network = Network::start(config)?;
    let handle = network.handle();
    let _runtime = handle.runtime().enter();
    for (listener, speaks) in sockets {
        tokio::spawn(welcome(listener.accept()?, speaks, None, handle.clone()));
    }
    for (endpoint, speaks) in connect {
        tokio::spawn(keep_connected(endpoint, speaks, handle.clone()));
    }
    if let Some(listener) = control {
        tokio::spawn(control::answer(listener.accept()?, handle.clone()));
    }

    // Whoever started this may not be there to read.
    let _ = io::stdout().write_all(invitations.as_bytes());
    if let Some(ready) = ready {
        File::from(ready).write_all(b"READY=1\n").context("cannot write to --ready-fd")?;
    }
    let cause = runtime.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => Ok("SIGINT"),
            _ = terminate.recv() => Ok("SIGTERM"),
            _ = hangup.recv() => Ok("SIGHUP"),
            () = handle.ended() => Err(anyhow!("the network has failed; this is a bug")),
        }
    })?;
    info!("{cause}: the network ends");
    network.shutdown();
    Ok(ExitCode::SUCCESS)
}

/// A daemon that was told nothing about control answers where `usernet ctl` looks, unless another
/// one does already.
fn bind_control(path: Option<&ControlPath>, files: &mut Vec<MadeFile>) -> Result<Option<Listener>> {
    let bound = match path {
        Some(ControlPath(path)) => control::bind(path)?,
        None => match control::bind(&default_control()) {
            Ok(bound) => bound,
            Err(error) => {
                warn!("this daemon has no control socket: {error:#}");
                return Ok(None);
            }
        },
    };
    files.extend(bound.1);
    Ok(Some(bound.0))
}

fn write_pid(path: &Path) -> Result<MadeFile> {
    fs::write(path, format!("{}\n", std::process::id()))
        .and_then(|()| MadeFile::new(path))
        .with_context(|| format!("cannot write the process ID to {}", path.display()))
}
