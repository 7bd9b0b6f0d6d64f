//! `examples/progress.rs`: viewers that see the uploads of one owner.

use super::*;

/// The stream of a viewer.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    fn connect(server: &Server, user: &str) -> Self {
        Self::start(TcpStream::connect(&server.address).unwrap(), user)
    }

    /// A viewer whose socket keeps little.
    fn connect_with_small_buffer(server: &Server, user: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let socket = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(server.address.parse().unwrap()).await
        });
        let socket = socket.unwrap().into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        Self::start(socket, user)
    }

    fn start(mut socket: TcpStream, user: &str) -> Self {
        // HTTP/1.0, so that the stream comes without frames.
        let head = format!("GET /progress HTTP/1.0\r\nhost: x\r\ncookie: user={user}\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        Self(BufReader::new(socket))
    }

    /// The kind and the data of the next event. `None` at the end.
    fn next(&mut self) -> Option<(String, Value)> {
        let mut kind = String::new();
        for line in self.0.by_ref().lines() {
            let line = line.unwrap();
            if let Some(name) = line.strip_prefix("event: ") {
                kind = name.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((kind, serde_json::from_str(data).unwrap()));
            }
        }
        None
    }

    fn list(&mut self) -> Vec<Value> {
        let (kind, list) = self.next().unwrap();
        assert_eq!(kind, "uploads");
        list.as_array().unwrap().clone()
    }

    /// The changes until this state.
    fn until(&mut self, state: &str) -> Vec<Value> {
        let mut changes = Vec::new();
        loop {
            let (kind, change) = self.next().unwrap();
            assert_eq!(kind, "upload");
            changes.push(change);
            if changes.last().unwrap()["state"] == state {
                return changes;
            }
        }
    }
}

fn send(server: &Server, user: &str, name: &str, number: u64) -> String {
    let line = format!("POST /upload?{}", chunk(name, number, 30));
    let head = format!("{RAW}cookie: user={user}\r\n");
    request(&server.address, &line, &head, b"0123456789")
}

#[test]
fn each_viewer_sees_the_uploads_of_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start("progress", "127.0.0.1:0", dir.path());
    let nobody = request(&server.address, "GET /progress", "", b"");
    assert!(nobody.starts_with("HTTP/1.1 401"), "{nobody}");

    let mut viewers = ["alice", "bob"].map(|user| Viewer::connect(&server, user));
    for viewer in &mut viewers {
        assert_eq!(viewer.list(), [] as [Value; 0]);
    }
    for number in 1..=3 {
        // Both have a file with the same name.
        for user in ["alice", "bob"] {
            let name = if number == 3 { user } else { "same.bin" };
            let answer = send(&server, user, name, number);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    // A viewer who comes late gets the state first.
    let mut late = Viewer::connect(&server, "alice");
    let mut list = late.list();
    list.sort_by_key(|upload| upload["file_name"].to_string());
    let state = |upload: &Value| (upload["file_name"].clone(), upload["received"].clone());
    assert_eq!(
        list.iter().map(state).collect::<Vec<_>>(),
        [("alice".into(), 10.into()), ("same.bin".into(), 20.into())]
    );
    for user in ["alice", "bob"] {
        let answer = send(&server, user, "same.bin", 3);
        assert!(
            answer.ends_with(&format!("same.bin belongs to {user}")),
            "{answer}"
        );
    }
    let of_late = late.until("finished");
    assert_eq!(of_late[0]["received"], 30, "{of_late:?}");
    let mut ids = Vec::new();
    for (viewer, (user, other)) in viewers.iter_mut().zip([("alice", "bob"), ("bob", "alice")]) {
        let changes = viewer.until("finished");
        assert!(
            changes.iter().all(|change| change["file_name"] != other),
            "{changes:?}"
        );
        assert!(
            changes.iter().any(|change| change["file_name"] == user),
            "{changes:?}"
        );
        let same = changes
            .iter()
            .filter(|change| change["file_name"] == "same.bin");
        let same: Vec<_> = same.collect();
        let received: Vec<_> = same
            .iter()
            .map(|change| change["received"].as_u64())
            .collect();
        assert!(received.is_sorted(), "{received:?}");
        for step in [10, 20, 30] {
            assert!(received.contains(&Some(step)), "{received:?}");
        }
        let states: Vec<_> = same
            .iter()
            .map(|change| change["state"].as_str().unwrap())
            .collect();
        assert!(
            states.ends_with(&["receiving", "delivering", "finished"]),
            "{states:?}"
        );
        ids.push(same[0]["id"].clone());
        assert!(same.iter().all(|change| change["id"] == ids[ids.len() - 1]));
    }
    assert_ne!(ids[0], ids[1]);
    // A viewer is told that an upload is cancelled.
    let line = format!("DELETE /upload?{}", chunk("alice", 3, 30));
    let answer = request(&server.address, &line, "cookie: user=alice\r\n", b"");
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert_eq!(viewers[0].until("removed")[0]["file_name"], "alice");

    // The viewers are still connected. They do not keep the server from its end.
    #[cfg(unix)]
    {
        let asked = Instant::now();
        assert_eq!(server.terminate().len(), 2);
        assert!(
            asked.elapsed() < Duration::from_secs(20),
            "{:?}",
            asked.elapsed()
        );
        for viewer in &mut viewers {
            assert_eq!(viewer.next(), None);
        }
    }
}

/// A viewer who does not read is told less, and gets the list when it reads again.
#[test]
fn a_slow_viewer_delays_no_upload() {
    const CHUNKS: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start("progress", "127.0.0.1:0", &dir.path().join("uploads"));
    let mut slow = Viewer::connect_with_small_buffer(&server, "alice");
    assert_eq!(slow.list(), [] as [Value; 0]);

    // JSON escapes the quotation marks, so the messages do not fit into the buffers of the sockets.
    let name = "\"".repeat(1000);
    let source = source(dir.path(), 100 * CHUNKS);
    let header = "cookie: user=alice";
    let options = [
        "--chunk-size",
        "100",
        "--no-test",
        "--octet",
        "--parallel",
        "8",
    ];
    let options = [&options[..], &["--header", header, "--name", &name]].concat();
    let output = upload(&server.address, &source, &options).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let (mut lists, mut changes) = (0, 0);
    let last = loop {
        let (kind, data) = slow.next().unwrap();
        if kind == "uploads" {
            lists += 1;
            assert!(data.as_array().unwrap().is_empty(), "{data}");
        } else {
            changes += 1;
            if data["state"] == "finished" {
                break data;
            }
        }
    };
    println!("{CHUNKS} chunks: {changes} changes and {lists} more lists");
    assert_eq!(last["received"], 100 * CHUNKS);
    assert!(
        lists > 0 && changes < CHUNKS,
        "{lists} lists, {changes} changes"
    );
}
