//! Reads `/boot/loader/grub.cfg` as GRUB does, as far as our own `grub-config` writes it: for hosts that no GRUB starts.
//!
//! Lines of `set`, `if`/`elif`/`else`/`fi` with `[ … ]`, `load_env`, `save_env`, `echo`, `true` and `menuentry … { … }`. A
//! command that it does not know is an error: what GRUB would do then is not guessed.

use std::collections::BTreeMap;

use super::grub_env::GrubEnv;

/// What GRUB would boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The entry's `--id`.
    pub id: String,
    /// Arguments of its kernel.
    pub arguments: Vec<String>,
    /// GRUB would wait for a person before it boots.
    pub waits: bool,
}

/// Why a configuration is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// A line that is none of ours.
    #[error("line {number} of GRUB's configuration is not understood: {line}")]
    Line {
        /// From 1 on.
        number: usize,
        /// The line.
        line: String,
    },
    /// No entry.
    #[error("GRUB's configuration has no entry {0:?}")]
    NoEntry(String),
}

/// One entry, its lines not yet read.
#[derive(Debug)]
struct Entry {
    id: String,
    lines: Vec<(usize, String)>,
}

/// An open `if`.
#[derive(Debug)]
struct Branch {
    /// What surrounds it runs.
    outer: bool,
    /// One of its branches ran.
    taken: bool,
    /// The present branch runs.
    runs: bool,
}

/// Reads the configuration `text`. `env` is GRUB's environment, none if there is no such file; `save` writes it, and says
/// whether that worked.
pub fn run(
    text: &str,
    env: Option<&mut GrubEnv>,
    save: &mut dyn FnMut(&GrubEnv) -> bool,
) -> Result<Choice, ScriptError> {
    let mut script = Script { variables: BTreeMap::new(), env, save };
    let mut branches: Vec<Branch> = Vec::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        let wrong = || ScriptError::Line { number, line: line.to_owned() };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if inside {
            if line == "}" {
                inside = false;
            } else if let Some(entry) = entries.last_mut() {
                entry.lines.push((number, line.to_owned()));
            }
            continue;
        }
        let runs = branches.last().is_none_or(|branch| branch.runs);
        if let Some(condition) = line.strip_prefix("if ").and_then(|rest| rest.strip_suffix("; then")) {
            let holds = runs && script.holds(condition).ok_or_else(wrong)?;
            branches.push(Branch { outer: runs, taken: holds, runs: holds });
        } else if let Some(condition) =
            line.strip_prefix("elif ").and_then(|rest| rest.strip_suffix("; then"))
        {
            let branch = branches.last_mut().ok_or_else(wrong)?;
            let holds = branch.outer && !branch.taken && script.holds(condition).ok_or_else(wrong)?;
            branch.runs = holds;
            branch.taken |= holds;
        } else if line == "else" {
            let branch = branches.last_mut().ok_or_else(wrong)?;
            branch.runs = branch.outer && !branch.taken;
        } else if line == "fi" {
            branches.pop().ok_or_else(wrong)?;
        } else if line.starts_with("menuentry ") {
            let words = script.words(line).ok_or_else(wrong)?;
            let place = words.iter().position(|word| word == "--id").ok_or_else(wrong)?;
            let id = words.get(place + 1).ok_or_else(wrong)?.clone();
            entries.push(Entry { id, lines: Vec::new() });
            inside = true;
        } else if runs {
            script.command(line).ok_or_else(wrong)?;
        }
    }
    script.choose(&entries)
}

struct Script<'a> {
    variables: BTreeMap<String, String>,
    env: Option<&'a mut GrubEnv>,
    save: &'a mut dyn FnMut(&GrubEnv) -> bool,
}

impl Script<'_> {
    fn choose(&mut self, entries: &[Entry]) -> Result<Choice, ScriptError> {
        let default = self.value("default");
        // As GRUB has it, what it does not find is the first.
        let entry = entries.iter().find(|entry| entry.id == default).or_else(|| entries.first());
        let entry = entry.ok_or(ScriptError::NoEntry(default))?;
        let mut arguments = Vec::new();
        for (number, line) in &entry.lines {
            let words = self.words(line);
            let words = words.ok_or_else(|| ScriptError::Line { number: *number, line: line.clone() })?;
            if words.first().is_some_and(|word| word == "linux") {
                arguments = words.into_iter().skip(2).collect();
            }
        }
        Ok(Choice { id: entry.id.clone(), arguments, waits: self.value("timeout") == "-1" })
    }

    fn value(&self, name: &str) -> String {
        self.variables.get(name).cloned().unwrap_or_default()
    }

    /// A condition: a command that succeeds. None: not understood.
    fn holds(&mut self, condition: &str) -> Option<bool> {
        let Some(test) = condition.strip_prefix("[ ").and_then(|rest| rest.strip_suffix(" ]")) else {
            return self.command(condition);
        };
        let words = self.words(test)?;
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["-s", path] if path.ends_with("/grubenv") => Some(self.env.is_some()),
            [one, "=", other] => Some(one == other),
            [one, "!=", other] => Some(one != other),
            _ => None,
        }
    }

    /// Runs a command, and says whether it succeeded. None: not understood.
    fn command(&mut self, line: &str) -> Option<bool> {
        let words = self.words(line)?;
        let (name, rest) = words.split_first()?;
        match name.as_str() {
            "set" => {
                let (name, value) = rest.first()?.split_once('=')?;
                self.variables.insert(name.to_owned(), value.to_owned());
                Some(true)
            }
            "load_env" => {
                for name in rest {
                    if let Some(value) = self.env.as_ref().and_then(|env| env.get(name)) {
                        self.variables.insert(name.clone(), value.to_owned());
                    }
                }
                Some(self.env.is_some())
            }
            "save_env" => {
                let values: Vec<(&String, String)> =
                    rest.iter().map(|name| (name, self.value(name))).collect();
                let Some(env) = self.env.as_mut() else { return Some(false) };
                for (name, value) in values {
                    env.set(name, &value);
                }
                Some((self.save)(env))
            }
            "echo" | "true" => Some(true),
            _ => None,
        }
    }

    /// Words of a line; variables are put in but between single quotes. An empty word that was not quoted is none.
    fn words(&self, line: &str) -> Option<Vec<String>> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        let mut characters = line.chars().peekable();
        let mut double = false;
        while let Some(character) = characters.next() {
            match character {
                '\'' if !double => {
                    quoted = true;
                    loop {
                        match characters.next()? {
                            '\'' => break,
                            other => word.push(other),
                        }
                    }
                }
                '"' => {
                    quoted = true;
                    double = !double;
                }
                '\\' => word.push(characters.next()?),
                '$' => {
                    let mut name = String::new();
                    while let Some(next) = characters.next_if(|next| next.is_alphanumeric() || *next == '_') {
                        name.push(next);
                    }
                    word += &self.value(&name);
                }
                ' ' if !double => {
                    if quoted || !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    quoted = false;
                }
                other => word.push(other),
            }
        }
        if quoted || !word.is_empty() {
            words.push(word);
        }
        (!double).then_some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(text: &str, env: Option<&mut GrubEnv>) -> Result<Choice, ScriptError> {
        run(text, env, &mut |_| true)
    }

    #[test]
    fn the_first_entry_is_the_default_and_words_are_grubs() {
        let text = "# comment\nmenuentry 'one' --id 'a' {\n    linux '/k' 'x='\\''y' \"$none\" $none 'b c'\n}\nmenuentry 'two' --id 'b' {\n}\n";
        let choice = choose(text, None).unwrap();
        assert_eq!(choice.id, "a");
        assert_eq!(choice.arguments, ["x='y", "", "b c"]);
        assert!(!choice.waits);
    }

    #[test]
    fn branches_and_the_environment() {
        let text = "if [ -s $prefix/grubenv ]; then\nload_env n\nif [ \"$n\" = 1 ]; then\nset n=2\nelif [ \"$n\" = 2 ]; then\nset n=3\nset default=b\nelse\nset timeout=-1\nfi\nif save_env n; then\ntrue\nelse\nset default=b\nfi\nfi\nmenuentry 'one' --id 'a' {\n}\nmenuentry 'two' --id 'b' {\n}\n";
        let mut env = GrubEnv::default();
        env.set("n", "1");
        for (id, n) in [("a", "2"), ("b", "3")] {
            let choice = choose(text, Some(&mut env)).unwrap();
            assert_eq!((choice.id.as_str(), env.get("n")), (id, Some(n)));
        }
        assert!(choose(text, Some(&mut env)).unwrap().waits);
        assert_eq!(choose(text, None).unwrap().id, "a");
        env.set("n", "1");
        assert_eq!(run(text, Some(&mut env), &mut |_| false).unwrap().id, "b");
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        for text in
            ["search --set=root", "if true\n", "fi\n", "else", "set x", "if [ -d x ]; then", "echo 'x"]
        {
            assert!(matches!(choose(text, None), Err(ScriptError::Line { number: 1, .. })), "{text}");
        }
        assert_eq!(choose("", None), Err(ScriptError::NoEntry(String::new())));
    }
}
