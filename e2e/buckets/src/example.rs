//! Runs `examples/two-servers` as its documentation says: two servers and its nginx configuration.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use super::{
    engine::Error,
    rng::Rng,
    rows::Case,
    world::{balance, free_address},
};

const SIZE: u64 = (17 << 20) + 3;

/// Uploads a file to the two servers, and checks their answer and their output.
pub async fn run(case: &Case, program: &Path) -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let mut servers = Vec::new();
    let addresses = [free_address(1)?, free_address(2)?];
    for address in addresses {
        let mut server = Command::new(program)
            .arg(address.to_string())
            .envs(case.engine.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(server.stderr.take().ok_or("no stderr")?).lines();
        match timeout(Duration::from_secs(60), lines.next_line()).await?? {
            Some(line) if line.starts_with("listening on ") => servers.push((server, lines)),
            line => return Err(format!("the example says {line:?}").into()),
        }
    }
    let balancer = free_address(3)?;
    let _nginx = balance(&case.tools, dir.path(), balancer, &addresses).await?;
    let content = Rng::new(case.seed).bytes(SIZE);
    let zeros = content.iter().filter(|byte| **byte == 0).count();
    let source = dir.path().join("file.bin");
    std::fs::write(&source, content)?;
    let output = Command::new(&case.tools.client)
        .args(["--chunk-size", "5M", "--shuffle", "--duplicate", "50"])
        .arg(format!("http://{balancer}/upload"))
        .arg(source)
        .output();
    let output = timeout(Duration::from_secs(60), output).await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut delivered = String::new();
    for (mut server, _lines) in servers {
        server.kill().await?;
        if let Some(mut stdout) = server.stdout.take() {
            stdout.read_to_string(&mut delivered).await?;
        }
    }
    let answer = format!("{zeros} of {SIZE} bytes are zero");
    if !output.status.success() || !said.contains(&answer) {
        return Err(format!("no {answer:?} in {said}").into());
    }
    if delivered.lines().count() != 1 || !delivered.ends_with(&format!(" {SIZE} file.bin\n")) {
        return Err(format!("the example has printed {delivered:?}").into());
    }
    println!("{}: the example with two servers works", case.engine.name);
    Ok(())
}
