//! Tables of figures and ratios, beside the ratios of the saved run.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::{Error, Options};

/// The values that one round of a row has measured, by column.
pub type Figures = Vec<(&'static str, f64)>;

/// One row of a table.
pub struct Row<'a> {
    pub name: String,
    pub measure: Box<dyn FnMut() -> Result<Figures, Error> + 'a>,
}

/// The ratios of this run and of the saved run.
pub struct Ratios {
    saved: BTreeMap<String, f64>,
    now: BTreeMap<String, f64>,
    save: bool,
}

fn path() -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "benches",
        "server",
        "baseline.txt",
    ]
    .iter()
    .collect()
}

impl Ratios {
    pub fn load(options: &Options) -> Self {
        let text = fs::read_to_string(path()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            let (name, ratio) = line.rsplit_once('\t')?;
            Some((name.to_owned(), ratio.parse().ok()?))
        });
        Self {
            saved: lines.collect(),
            now: BTreeMap::new(),
            save: options.save,
        }
    }

    pub fn finish(mut self) -> Result<(), Error> {
        if self.save {
            let mut all = std::mem::take(&mut self.saved);
            all.append(&mut self.now);
            let lines = all.iter().map(|(name, r)| format!("{name}\t{r:.2}\n"));
            fs::write(path(), lines.collect::<String>())?;
        }
        Ok(())
    }

    /// Measures rows in turn and prints the best values of each. The ratio compares the column `of`
    /// with the same column of the first row.
    pub fn table(
        &mut self,
        title: &str,
        of: &'static str,
        rounds: usize,
        rows: &mut [Row<'_>],
    ) -> Result<(), Error> {
        let mut all: Vec<Vec<Figures>> = vec![Vec::new(); rows.len()];
        for _ in 0..rounds {
            for (row, figures) in rows.iter_mut().zip(&mut all) {
                let measured = (row.measure)();
                figures.push(measured.map_err(|e| format!("{title}, {}: {e}", row.name))?);
            }
        }
        println!("\n{title}");
        let mut first = None;
        for (Row { name, .. }, rounds) in rows.iter().zip(&all) {
            let best = best(rounds);
            if first.is_none() {
                let names: String = best.iter().map(|(n, _)| format!("{n:>12}")).collect();
                println!("{:44}{names}{:>9}{:>9}", "", "ratio", "before");
            }
            let figures = best.iter().map(|(_, x)| match *x {
                x if x >= 100.0 => format!("{x:>12.0}"),
                x if x >= 10.0 => format!("{x:>12.1}"),
                x => format!("{x:>12.2}"),
            });
            let value = best.iter().find(|(n, _)| *n == of).map(|(_, x)| *x);
            let value = value.ok_or("no such column")?;
            let ratio = value / *first.get_or_insert(value);
            let key = format!("{title}: {name}");
            let before = self.saved.get(&key);
            let before = before.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            println!(
                "{name:44}{}{ratio:>9.2}{before:>9}",
                figures.collect::<String>()
            );
            self.now.insert(key, ratio);
        }
        Ok(())
    }
}

/// Returns the best value of each column, because a disturbance can only make a value worse. On a
/// virtual machine that gets its memory page by page, some values are much worse.
fn best(rounds: &[Figures]) -> Figures {
    let Some(first) = rounds.first() else {
        return Vec::new();
    };
    let columns = first.iter().enumerate().map(|(i, (name, _))| {
        let values = rounds.iter().map(|round| round[i].1);
        let best = if name.ends_with("/s") {
            values.fold(f64::MIN, f64::max)
        } else {
            values.fold(f64::MAX, f64::min)
        };
        (*name, best)
    });
    columns.collect()
}
