//! Names that would be harmful if they were used as paths, commands or markup.

use super::case;
use crate::{
    client::{Client, File, Role, Way},
    world::{Case, World, is_harmless},
};

pub const CASES: &[Case] = &[
    case!("1", "identifiers with path traversal", climbing),
    case!("2", "identifiers that are paths on other systems", foreign),
    case!("3", "an identifier with NUL", nul),
    case!("4", "an empty and a missing identifier", no_identifier),
    case!("5", "identifiers with shell syntax", shell),
    case!("6", "identifiers of 1,024 and 1,025 bytes", long_identifier),
    case!("7", "file names that are paths", paths),
    case!(
        "8",
        "file names that Windows takes for devices or streams",
        devices
    ),
    case!(
        "9",
        "file names with line ends, NUL, DEL, direction marks",
        controls
    ),
    case!(
        "10",
        "file names that are empty, or only dots or spaces",
        nothing
    ),
    case!(
        "11",
        "file names of 255, 256, 1,024 and 1,025 bytes",
        long_names
    ),
    case!("12", "file names that are markup, also in answers", markup),
    case!(
        "13",
        "relative paths with path traversal; of 4,096 and 4,097 bytes",
        relative_paths
    ),
    case!("14", "scopes that are paths and devices", scopes),
    case!(
        "14",
        "an invalid escape and bytes that are not UTF-8 in names",
        not_utf8
    ),
];

async fn identifiers(world: &World, identifiers: &[String]) {
    for (client, way) in world.clients() {
        for identifier in identifiers {
            let file = File {
                identifier: identifier.clone(),
                ..world.file(client, way)
            };
            world.accepted(&file, |chunk| chunk).await;
        }
    }
}

async fn climbing(world: &World) {
    let canary = world.canary().display().to_string();
    let climbs = [
        "../../etc/passwd",
        "../passwd",
        "../../passwd",
        "../../../passwd",
        "../../../../canary",
        "....//....//canary",
        "..%2f..%2fcanary",
        "a/../../../../../canary",
        "partial/../../passwd",
    ];
    let mut all: Vec<_> = climbs.map(str::to_owned).into();
    all.push(format!("{canary}x"));
    identifiers(world, &all).await;
}

async fn foreign(world: &World) {
    let names = [
        r"\\srv\share",
        r"C:\x",
        r"..\..\x",
        "C:x",
        r"\\.\pipe\x",
        "file:///etc/x",
    ];
    let canary = world.canary().display().to_string();
    let mut all: Vec<_> = names.map(str::to_owned).into();
    all.extend([canary, "/etc/cron.d/x".into()]);
    identifiers(world, &all).await;
}

async fn shell(world: &World) {
    let names = [
        ".", "..", "~", "-rf", "$(id)", "`id`", "a;b", "a|b", "*", "%s%n", "a b", "a\nb", "'\"",
    ];
    identifiers(world, &names.map(str::to_owned)).await;
}

async fn nul(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let with = |text: &str| {
            (
                format!("{text:?}"),
                file.chunk(2).set(Role::Identifier, text),
            )
        };
        let attacks = ["a\0b", "\0", "a\0"].map(with).into();
        world.refused(&file, "invalid_field", attacks).await;
    }
}

async fn no_identifier(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let empty = file.chunk(2).set(Role::Identifier, "");
        let missing = file.chunk(2).without(Role::Identifier);
        world
            .refused(&file, "invalid_field", vec![("empty".into(), empty)])
            .await;
        let file = world.file(client, way);
        world
            .refused(&file, "missing_field", vec![("missing".into(), missing)])
            .await;
    }
}

async fn long_identifier(world: &World) {
    for (client, way) in world.clients() {
        for unit in ["a", "é"] {
            let fits = unit.repeat(1024 / unit.len());
            let file = File {
                identifier: fits.clone(),
                ..world.file(client, way)
            };
            world.accepted(&file, |chunk| chunk).await;
            let file = world.file(client, way);
            let long = file.chunk(2).set(Role::Identifier, &(fits + "a"));
            world
                .refused(&file, "invalid_field", vec![("1,025 bytes".into(), long)])
                .await;
        }
    }
}

/// Uploads files with these names. `accepted` checks their names on disk.
async fn named(world: &World, names: &[&str]) {
    for (client, way) in world.clients() {
        for name in names {
            let file = File {
                name: (*name).to_owned(),
                ..world.file(client, way)
            };
            world.accepted(&file, |chunk| chunk).await;
            let upload = &world.deliveries().pop().unwrap().upload;
            // In the header of a part, line ends and quotes of a name are escaped.
            assert_eq!(upload.file_name(), Some(*name), "{client:?} {way:?}");
            assert!(is_harmless(&upload.safe_file_name()));
        }
    }
}

async fn paths(world: &World) {
    let canary = world.canary().display().to_string();
    named(
        world,
        &[
            "../../x",
            "/abs",
            r"C:\a\b.txt",
            r"a/b\c.txt",
            "../../../../canary",
            &canary,
            "a/",
            "/",
            "..",
            "../",
            r"..\..\..\canary",
            "partial",
            "files",
        ],
    )
    .await;
}

async fn devices(world: &World) {
    named(
        world,
        &[
            "CON",
            "nul.txt",
            "LPT1.",
            "COM¹",
            "a:b",
            "x. ",
            "AUX.tar.gz",
            "com0",
            "CONIN$",
            "con .txt",
            "a.txt:stream",
            "a.txt::$DATA",
            "PRN  ",
            "clock$",
            "desktop.ini",
            ".htaccess",
        ],
    )
    .await;
    for delivery in world.deliveries() {
        let name = delivery.upload.safe_file_name().to_ascii_uppercase();
        let stem = name.split('.').next().unwrap().trim_end().to_owned();
        let devices = ["CON", "NUL", "LPT1", "COM¹", "AUX", "COM0", "CONIN$", "PRN"];
        assert!(!devices.contains(&stem.as_str()), "{name}");
    }
}

async fn controls(world: &World) {
    let names = ["x\u{202e}gpj.exe", "\u{feff}a", "a\u{2028}b", "\u{200f}a"];
    named(world, &names).await;
    for (client, way) in world.clients() {
        for name in [
            "a\nb",
            "a\r\nSet-Cookie: x=1\r\n\r\nb",
            "\u{1b}[2J",
            "a\u{7f}b",
            "a\tb",
        ] {
            // Browsers escape the line ends in the headers of a part. Without that, the header is
            // malformed.
            if client == Client::Dropzone && name.contains(['\u{1b}', '\u{7f}']) {
                let file = world.file(client, way);
                let attack = file.chunk(2).set(Role::Name, name);
                world
                    .refused(&file, "multipart", vec![(format!("{name:?}"), attack)])
                    .await;
                continue;
            }
            let file = File {
                name: name.into(),
                ..world.file(client, way)
            };
            world.accepted(&file, |chunk| chunk).await;
        }
        let file = world.file(client, way);
        let attacks =
            ["a\0b", "\0"].map(|name| (format!("{name:?}"), file.chunk(2).set(Role::Name, name)));
        world.refused(&file, "", attacks.into()).await;
    }
}

async fn nothing(world: &World) {
    named(world, &["...", "   ", ". .", "\u{200b}", "-", "--", ".-."]).await;
    let safe = |delivery: &crate::world::Delivery| delivery.upload.safe_file_name();
    assert!(
        world
            .deliveries()
            .iter()
            .all(|delivery| safe(delivery) == "file")
    );
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let empty = file.chunk(2).set(Role::Name, "");
        match client {
            // In the headers of a part, an empty name means no name.
            Client::Dropzone => {
                world
                    .accepted(&file, |chunk| chunk.set(Role::Name, ""))
                    .await;
            }
            _ => {
                world
                    .refused(&file, "invalid_field", vec![("empty".into(), empty)])
                    .await;
            }
        }
    }
}

async fn long_names(world: &World) {
    let names = [
        "a".repeat(255),
        "a".repeat(256),
        "é".repeat(128),
        "é".repeat(512),
        "é".repeat(300) + ".tar.gz",
    ];
    named(world, &names.each_ref().map(String::as_str)).await;
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let long = file.chunk(2).set(Role::Name, &"a".repeat(1025));
        world
            .refused(&file, "invalid_field", vec![("1,025 bytes".into(), long)])
            .await;
    }
}

async fn markup(world: &World) {
    let names = [
        "<img src=x onerror=alert(1)>",
        "\"><script>alert(1)</script>.svg",
        "javascript:alert(1)",
        "{{7*7}}",
    ];
    named(world, &names).await;
    for (client, way) in world.clients() {
        for name in names {
            let file = world.file(client, way);
            let mut attacks = Vec::new();
            for role in [Role::Identifier, Role::Name, Role::Type, Role::Path] {
                if client.has(role) {
                    let chunk = file.chunk(2).set(role, name).set(Role::Total, "-1");
                    attacks.push((format!("{role:?}"), chunk));
                }
            }
            let number = file.chunk(2).set(Role::Position, name);
            attacks.push(("position".into(), number));
            let field = name.replace('"', "%22");
            let extra = file.chunk(2).with(&field, name).set(Role::Total, "-1");
            attacks.push(("a field of its own".into(), extra));
            world.refused(&file, "invalid_field", attacks).await;
        }
    }
}

async fn relative_paths(world: &World) {
    for (client, way) in world.clients().filter(|(client, _)| client.has(Role::Path)) {
        let canary = world.canary().display().to_string();
        let long = "a/".repeat(2048);
        for path in [
            "../../../../canary",
            "/etc/cron.d/x",
            r"..\..\x",
            "a/../../x",
            "a\0",
            &canary,
            &long,
        ] {
            let file = File {
                path: Some(path.to_owned()),
                ..world.file(client, way)
            };
            if path.contains('\0') {
                let file = world.file(client, way);
                let nul = file.chunk(2).set(Role::Path, path);
                world
                    .refused(&file, "invalid_field", vec![("NUL".into(), nul)])
                    .await;
                continue;
            }
            world.accepted(&file, |chunk| chunk).await;
            let upload = &world.deliveries().pop().unwrap().upload;
            assert_eq!(upload.relative_path(), Some(path));
        }
        let file = world.file(client, way);
        let long = file.chunk(2).set(Role::Path, &(long + "a"));
        world
            .refused(&file, "invalid_field", vec![("4,097 bytes".into(), long)])
            .await;
    }
}

async fn scopes(world: &World) {
    let canary = world.canary().display().to_string();
    let long = "a".repeat(20_000);
    for scope in [
        "CON", "../../x", "..", ".", "/etc/x", "a b", r"C:\x", "*", &canary, &long,
    ] {
        for (client, way) in [
            (Client::Resumable, Way::Both),
            (Client::Dropzone, Way::Form),
        ] {
            let file = File::new(client, way, scope, 0);
            world.accepted(&file, |chunk| chunk).await;
        }
    }
}

async fn not_utf8(world: &World) {
    for client in [Client::Resumable, Client::Flow] {
        for role in [Role::Identifier, Role::Name, Role::Path] {
            let file = world.file(client, Way::Octets);
            let attacks = ["%FF", "a%C3", "%C0%AE%C0%AE%C0%AF", "%ED%A0%80"].map(|raw| {
                let mut chunk = file.chunk(2).without(role);
                chunk.raw_query = format!("&{}={raw}", client.field(role));
                (raw.to_owned(), chunk)
            });
            world.refused(&file, "invalid_field", attacks.into()).await;
        }
        // In a form, such a field is not text at all.
        let file = world.file(client, Way::Form);
        let mut chunk = file.chunk(2);
        let field = format!(
            "Content-Disposition: form-data; name=\"{}\"",
            client.field(Role::Name)
        );
        chunk.after = crate::client::raw_part(&field, b"a\xff");
        world
            .refused(&file, "multipart", vec![("form".into(), chunk)])
            .await;
    }
}
