//! SIGTERM while uploads and slow handlers are running.

use std::{collections::BTreeMap, io::ErrorKind};

use super::*;

const HANDLER: &str = "3000";
const DELIVERIES: usize = 5;

/// A server example, how many uploads are running, and the heads of its users.
struct Case {
    name: &'static str,
    uploads: usize,
    users: [&'static str; 2],
}

#[test]
fn a_server_that_is_asked_to_end_loses_nothing() {
    let [alice, bob] = [
        "authorization: Bearer alices-token\r\n",
        "authorization: Bearer bobs-token\r\n",
    ];
    let case = |name, uploads, users| Case {
        name,
        uploads,
        users,
    };
    let cases = [
        case("axum", 20, [""; 2]),
        case("hyper", 20, [""; 2]),
        case("tonic", 20, [""; 2]),
        // Each user may have ten unfinished uploads.
        case("auth", 14, [alice, bob]),
    ];
    thread::scope(|scope| {
        for case in &cases {
            scope.spawn(|| check(case));
        }
    });
}

fn check(case: &Case) {
    let Case {
        name,
        uploads,
        users,
    } = case;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("uploads");
    let mut command = example(name);
    command.args(["--work", HANDLER]);
    let server = Server::run(command, "127.0.0.1:0", &folder);
    let address = server.address.clone();

    // Each upload has one of its two chunks, and the server is reading the other one.
    let uploads: Vec<_> = (0..*uploads)
        .map(|n| {
            let (file, user) = (format!("upload-{n}"), users[n % 2]);
            let line = |number| format!("POST /upload?{}", chunk(&file, number, 20));
            let stored = request(&address, &line(1), &format!("{user}{RAW}"), b"0123456789");
            assert!(stored.starts_with("HTTP/1.1 200"), "{name}: {stored}");
            (begin(&address, &line(2), user), line(2), user)
        })
        .collect();
    // The handler is called for these files. Some of their clients have gone.
    let deliveries: Vec<_> = (0..DELIVERIES)
        .map(|n| {
            let (file, user) = (format!("delivery-{n}"), users[n % 2]);
            let line = format!("POST /upload?{}", chunk(&file, 1, 10));
            let mut socket = begin(&address, &line, user);
            socket.write_all(b"56789").unwrap();
            let status = format!("GET /upload?{}&resumableStatus", chunk(&file, 1, 10));
            while !request(&address, &status, user, b"").contains("\"state\":\"complete\"") {
                thread::yield_now();
            }
            (n % 2 == 0).then_some(socket)
        })
        .collect();

    server.ask_to_end();
    // It refuses new clients at once. They must not wait for a server that is going away.
    let (asked, second) = (Instant::now(), Duration::from_secs(1));
    let connect = || TcpStream::connect_timeout(&address.parse().unwrap(), second);
    while !connect().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        assert!(asked.elapsed() < 5 * second, "{name} still listens");
        thread::yield_now();
    }
    // Half of the clients go away in the middle of their chunk, and the others send the rest.
    let mut statuses = BTreeMap::<_, usize>::new();
    let mut unfinished = Vec::new();
    let mut sent = Vec::new();
    for (n, (mut socket, line, user)) in uploads.into_iter().enumerate() {
        if n % 2 == 0 {
            socket.write_all(b"56789").unwrap();
            sent.push((socket, line, user));
        } else {
            unfinished.push((line, user));
        }
    }
    for (socket, line, user) in sent {
        let answer = answer(socket);
        // 503 is retryable.
        let status = answer.get(9..12).unwrap_or_default().to_owned();
        assert!(["200", "503"].contains(&&*status), "{name}: {answer:?}");
        if status != "200" {
            unfinished.push((line, user));
        }
        *statuses.entry(status).or_default() += 1;
    }
    for socket in deliveries.into_iter().flatten() {
        let answer = answer(socket);
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
    }
    let before = server.end();

    // After the restart, the clients without an answer send their chunks again.
    let server = Server::start(name, "127.0.0.1:0", &folder);
    let again = unfinished.len();
    for (line, user) in unfinished {
        let head = format!("{user}{RAW}");
        let answer = request(&server.address, &line, &head, b"0123456789");
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
    }
    let after = server.terminate();

    let mut calls = BTreeMap::<_, usize>::new();
    for delivery in before.iter().chain(&after) {
        let path = delivery["path"].as_str().unwrap();
        let content = std::fs::read(path).unwrap();
        assert!(
            content
                .iter()
                .eq(b"01234567890123456789".iter().take(content.len()))
        );
        *calls.entry(delivery["file_name"].to_string()).or_default() += 1;
    }
    let all = case.uploads + DELIVERIES;
    let (lost, doubled) = (
        all - calls.len(),
        calls.values().filter(|calls| **calls > 1).count(),
    );
    println!(
        "{name}: {all} files, {} delivered before the end and {} after it, answers in mid-chunk: \
         {statuses:?}, {again} sent again; lost {lost}, doubled {doubled}",
        before.len(),
        after.len(),
    );
    assert_eq!((lost, doubled), (0, 0), "{name}: {calls:?}");
    assert!(before.len() >= DELIVERIES, "{name}: {before:?}");
}

/// Sends the first half of a chunk of ten bytes. Returns when the server reads its body.
fn begin(address: &str, line: &str, user: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{user}{RAW}\
         expect: 100-continue\r\ncontent-length: 10\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let expected = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, expected);
    socket.write_all(b"01234").unwrap();
    socket
}
