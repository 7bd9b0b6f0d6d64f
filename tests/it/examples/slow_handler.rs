//! `examples/slow_handler.rs`: jobs that survive the death of the process.

use super::*;

fn jobs(work: &str, uploads: &Path) -> Server {
    let mut command = example("slow_handler");
    command.args(["--work", work]);
    Server::run(command, "127.0.0.1:0", uploads)
}

fn state(server: &Server, job: &str) -> Value {
    json(&request(&server.address, &format!("GET {job}"), "", b""))
}

fn wait_for(server: &Server, job: &str, wanted: &str) -> Value {
    loop {
        let state = state(server, job);
        if state["state"] == wanted {
            return state;
        }
        thread::yield_now();
    }
}

fn count(lines: &[Value], what: &str) -> usize {
    lines.iter().filter(|line| line.get(what).is_some()).count()
}

#[test]
fn a_job_of_a_killed_process_finishes_once() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = dir.path().join("uploads");
    let source = source(dir.path(), 300_003);
    let server = jobs("600000", &uploads);
    let accepted = |server: &Server| {
        let output = upload(&server.address, &source, &[]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        let answer: Value = serde_json::from_str(line["answer"].as_str().unwrap()).unwrap();
        answer["job"].as_str().unwrap().to_owned()
    };
    let job = accepted(&server);
    wait_for(&server, &job, "running");
    let first = server.kill();
    assert_eq!(
        (count(&first, "started"), count(&first, "finished")),
        (1, 0)
    );

    let server = jobs("0", &uploads);
    let state = wait_for(&server, &job, "finished");
    assert_eq!(
        (&state["starts"], &state["file_name"]),
        (&2.into(), &"source.bin".into())
    );
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(std::fs::read(&source).unwrap());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(state["sha256"], hash);
    // The client asks again, and gets the recorded answer.
    assert_eq!(accepted(&server), job);
    let second = server.kill();
    assert_eq!(
        (count(&second, "started"), count(&second, "finished")),
        (1, 1)
    );

    // There is nothing left to do, and one copy of the file.
    let server = jobs("0", &uploads);
    assert_eq!(self::state(&server, &job), state);
    let unknown = request(&server.address, "GET /jobs/unknown", "", b"");
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    assert_eq!(count(&server.kill(), "started"), 0);
    assert_eq!(files(&uploads.join("files"), "bin"), [] as [PathBuf; 0]);
}

/// The process is killed as soon as the job starts. Then the answer of the handler may be recorded
/// or not, and the delivery may be repeated.
#[test]
fn a_repeated_delivery_adds_no_second_job() {
    let mut repeated = 0;
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let uploads = dir.path().join("uploads");
        let mut server = jobs("600000", &uploads);
        let client = start(&server.address, "a.bin");
        let mut lines = BufReader::new(server.process.stdout.as_mut().unwrap()).lines();
        let added = lines.next().unwrap().unwrap();
        drop(lines);
        let added: Value = serde_json::from_str(&added).unwrap();
        let job = format!("/jobs/{}", added["added"].as_str().unwrap());
        server.kill();
        drop(client);

        let server = jobs("0", &uploads);
        wait_for(&server, &job, "finished");
        let line = format!("POST /upload?{}", chunk("a.bin", 1, 10));
        let answer = json(&request(&server.address, &line, RAW, b"0123456789"));
        assert_eq!(answer["job"], job);
        let lines = server.kill();
        repeated += count(&lines, "added");
        assert_eq!(
            (count(&lines, "started"), count(&lines, "finished")),
            (1, 1)
        );
        assert_eq!(files(&uploads.join("files"), "bin"), [] as [PathBuf; 0]);
    }
    println!("{repeated} of 8 deliveries were repeated");
}
