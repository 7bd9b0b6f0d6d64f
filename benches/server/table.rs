//! Measures tables, and prints them beside the ratios of the saved run.

use std::{
    collections::BTreeMap,
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    Error, Options,
    server::{Build, Kind, root},
};

/// The values of one round of a row, by column.
pub type Figures = Vec<(&'static str, f64)>;

/// One row of a table.
#[derive(Clone)]
pub struct Row {
    pub name: &'static str,
    pub kind: Kind,
    pub measure: Rc<dyn Fn(Build) -> Result<Figures, Error>>,
}

pub struct Table {
    pub key: String,
    pub title: String,
    /// The columns that get ratios to the first row.
    pub of: &'static [&'static str],
    pub rows: Vec<Row>,
}

/// Measures and prints the tables that the options name.
pub fn measure(tables: Vec<Table>, options: &Options) -> Result<(), Error> {
    let mut wanted = Vec::new();
    match &options.only {
        None => wanted.extend(&tables),
        Some(keys) => {
            for key in keys.split(',') {
                let exact = tables.iter().any(|table| table.key == key);
                let found =
                    |table: &&Table| table.key == key || !exact && table.key.starts_with(key);
                let before = wanted.len();
                wanted.extend(tables.iter().filter(found));
                if wanted.len() == before {
                    return Err(format!("no table {key}, see --help").into());
                }
            }
        }
    }
    let machine = machine()?;
    let mut saved = Saved::read()?;
    if saved.machine != machine {
        saved.medians.clear();
    }
    println!("{machine}; medians of {} rounds", options.rounds);
    for table in wanted {
        table.run(options.rounds, &mut saved)?;
    }
    if options.save {
        saved.machine = machine;
        saved.write()?;
    }
    Ok(())
}

impl Table {
    fn run(&self, rounds: usize, saved: &mut Saved) -> Result<(), Error> {
        let rows: Vec<(String, &Row, Build)> = self
            .rows
            .iter()
            .flat_map(|row| {
                row.kind.builds().iter().map(move |build| {
                    let against = if *build == Build::Against {
                        ", against"
                    } else {
                        ""
                    };
                    (format!("{}{against}", row.name), row, *build)
                })
            })
            .collect();
        let mut measured: Vec<Vec<Figures>> = vec![Vec::new(); rows.len()];
        for round in 0..rounds {
            if std::io::stderr().is_terminal() {
                eprint!("\r{}: round {} of {rounds}\x1b[K\r", self.key, round + 1);
            }
            let mut order: Vec<usize> = (0..rows.len()).collect();
            // Each second round backwards, because a row may be measured better after another one.
            if round % 2 == 1 {
                order.reverse();
            }
            for i in order {
                let (name, row, build) = &rows[i];
                let figures = (row.measure)(*build);
                measured[i].push(figures.map_err(|e| format!("{}, {name}: {e}", self.key))?);
            }
        }
        let Some(columns) = measured.first().and_then(|rounds| rounds.first()) else {
            return Ok(());
        };
        let has_ratios = rows.len() > 1 && !self.of.is_empty();
        println!("\n{}: {}\n", self.key, self.title);
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(columns.iter().map(|(name, _)| (*name).to_owned()));
        if has_ratios {
            lines[0].extend(self.of.iter().map(|name| format!("{name}, ratio")));
            lines[0].push("saved".into());
        }
        for ((name, ..), rounds) in rows.iter().zip(&measured) {
            let mut line = vec![name.clone()];
            line.extend((0..columns.len()).map(|i| {
                let [_, median, _] = spread(rounds.iter().map(|figures| figures[i].1));
                match median {
                    x if x >= 100.0 => format!("{x:.0}"),
                    x if x >= 10.0 => format!("{x:.1}"),
                    x => format!("{x:.2}"),
                }
            }));
            let mut before = Vec::new();
            for of in self.of.iter().filter(|_| has_ratios) {
                let at = columns.iter().position(|(name, _)| name == of);
                let at = at.ok_or("no such column")?;
                let ratios = rounds.iter().zip(&measured[0]);
                let [least, median, most] =
                    spread(ratios.map(|(one, first)| one[at].1 / first[at].1));
                line.push(format!("{median:.2} ({least:.2}–{most:.2})"));
                let key = format!("{}\t{name}\t{of}", self.key);
                before.extend(saved.medians.get(&key).cloned());
                saved.medians.insert(key, format!("{median:.2}"));
            }
            if has_ratios {
                line.push(before.join(", "));
            }
            lines.push(line);
        }
        print(&lines);
        Ok(())
    }
}

/// The least value, the median and the greatest value.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let least = values.first().copied().unwrap_or(f64::NAN);
    let most = values.last().copied().unwrap_or(f64::NAN);
    let middle = values.len() / 2;
    let median = match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    [least, median, most]
}

/// Prints a table of Markdown.
fn print(lines: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    for (n, line) in lines.iter().enumerate() {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("| {cell:width$} "));
        println!("{}|", cells.collect::<String>());
        if n == 0 {
            println!("|{}", "---|".repeat(widths.len()));
        }
    }
}

/// The ratios of the saved run.
struct Saved {
    machine: String,
    /// By key of the table, row and column, with tabs between them.
    medians: BTreeMap<String, String>,
}

fn path() -> PathBuf {
    root("benches/server/baseline.txt")
}

impl Saved {
    fn read() -> Result<Self, Error> {
        let text = match fs::read_to_string(path()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let mut lines = text.lines();
        let machine = lines.next().unwrap_or_default().to_owned();
        let pairs = lines.filter_map(|line| line.rsplit_once('\t'));
        let medians = pairs.map(|(key, median)| (key.to_owned(), median.to_owned()));
        Ok(Self {
            machine,
            medians: medians.collect(),
        })
    }

    fn write(&self) -> Result<(), Error> {
        let lines = self
            .medians
            .iter()
            .map(|(key, median)| format!("{key}\t{median}\n"));
        let text = format!("{}\n{}", self.machine, lines.collect::<String>());
        Ok(fs::write(path(), text)?)
    }
}

/// The machine, its system, and the file systems that are measured.
fn machine() -> Result<String, Error> {
    let cores = std::thread::available_parallelism()?;
    let memory = value("/proc/meminfo", "MemTotal:")?;
    let memory: f64 = memory.trim_end_matches(" kB").parse()?;
    let model = value("/proc/cpuinfo", "model name").unwrap_or("unknown model".into());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut release = release.split('.');
    let (major, minor) = (release.next(), release.next());
    Ok(format!(
        "{cores} cores ({}), {:.0} GiB, Linux {}.{}; on disk: {}; in memory: tmpfs",
        model.trim_start_matches([' ', '\t', ':']),
        memory / 1024.0 / 1024.0,
        major.unwrap_or_default(),
        minor.unwrap_or_default(),
        file_system(&std::env::temp_dir())?,
    ))
}

fn value(path: &str, name: &str) -> Result<String, Error> {
    let text = fs::read_to_string(path)?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
    Ok(values.next().ok_or(format!("no {name}"))?.trim().to_owned())
}

/// The type of the file system that has this folder.
fn file_system(dir: &Path) -> Result<String, Error> {
    let dir = dir.canonicalize()?;
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
        let depth = Path::new(point).components().count();
        dir.starts_with(point)
            .then(|| (depth, device.to_owned(), kind.to_owned()))
    });
    let Some((_, device, kind)) = mounts.max_by_key(|(depth, ..)| *depth) else {
        return Ok("unknown".into());
    };
    // One folder for each journal: its device, and its inode.
    let journals = fs::read_dir("/proc/fs/jbd2")
        .into_iter()
        .flatten()
        .flatten();
    let device = Path::new(&device).file_name().unwrap_or_default();
    let device = device.to_string_lossy();
    let mut journals = journals.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(match kind.as_str() {
        "ext4" if !journals.any(|name| name.starts_with(&*device)) => {
            "ext4 without a journal".into()
        }
        _ => kind,
    })
}
