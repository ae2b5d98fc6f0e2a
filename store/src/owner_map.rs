//! Rules for the owners and modes that a restore sets.
//!
//! Rules stand in layers. For each entry, the first matching rule for its user counts, and likewise
//! for its group and its mode. A layer may apply to some paths only. [`Unmatched`] holds for
//! entries without a matching rule.

mod accounts;
mod error;
mod mode;
mod record;
mod record_file;
mod rules;

pub use crate::acl::lines as acl_lines;
pub(crate) use accounts::name_of;
pub use accounts::{Accounts, Class, SystemAccounts};
pub use error::{LookupError, RuleError};
pub use mode::ModeChanges;
pub use record::{OwnerAndMode, Recorder};
pub use record_file::RecordFile;
pub(crate) use record_file::dir_of;

use crate::acl::{self, Subject};
use crate::entry::{Entry, EntryKind, LinkKey, Owner, display_path, is_within};
use crate::error::{Error, Result};
use crate::glob::{GlobList, ends};
use parking_lot::Mutex;
use rules::{Rule, Target};
use std::collections::HashMap;
use std::sync::Arc;

/// User or group number with which `chown(2)` leaves an owner as it is.
pub const UNCHANGED: u32 = u32::MAX;

/// Results that are remembered. A store may have any number of owners.
const REMEMBERED: usize = 1 << 16;

/// Accounts whose name and number disagree that are listed.
const DISAGREEMENTS: usize = 1000;

/// Paths that are kept as samples of each rule.
const SAMPLES: usize = 3;

/// Owners of entries that no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// The numbers in the snapshot.
    #[default]
    ByNumber,
    /// The account of the same name on this machine; the number in the snapshot if there is none.
    ByName,
    /// The owner that the object has in the target.
    Unchanged,
}

/// The rules of a restore, and the count of entries that each of them matched.
#[derive(Debug)]
pub struct OwnerMap {
    layers: Vec<Layer>,
    /// Layers without paths, ascending.
    for_all: Vec<usize>,
    unmatched: Unmatched,
    accounts: Box<dyn Accounts>,
    /// Patterns of layers with paths.
    paths: GlobList,
    /// Layer of each pattern of `paths`.
    layers_of_paths: Vec<usize>,
    state: Mutex<State>,
}

/// Rules with the same source and the same paths.
#[derive(Debug, Default)]
struct Layer {
    /// Pattern of the paths; `None` for all of them.
    path: Option<Vec<u8>>,
    /// True if the layer does not apply below a match.
    is_exact: bool,
    users: Vec<(Rule, usize)>,
    groups: Vec<(Rule, usize)>,
    mode: Option<(ModeChanges, usize)>,
    /// Values of the access ACL and of the default ACL.
    acls: [Option<(Vec<u8>, usize)>; 2],
}

/// Use of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleUse {
    /// Option, or file and line, of the rule.
    pub source: String,
    /// The rule, as in a file of rules.
    pub rule: String,
    /// Number of entries whose owner, mode or access list the rule decided.
    pub entries: u64,
    /// The first of them, as absolute paths of the snapshot.
    pub samples: Vec<String>,
}

/// Entries for which a name and a number of the snapshot mean different accounts on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// User or group.
    pub class: Class,
    /// Name in the snapshot.
    pub name: String,
    /// Number in the snapshot.
    pub number: u32,
    /// Number that the restore sets: that of the name, or the one in the snapshot.
    pub set: u32,
    /// Name of the number `set` on this machine, if it is not `name`.
    pub name_here: Option<String>,
    /// Number of entries.
    pub entries: u64,
}

/// Effects of the rules on the entries of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// All rules in their order.
    pub rules: Vec<RuleUse>,
    /// Names and numbers that disagree, of entries that no rule matched.
    pub disagreements: Vec<Disagreement>,
    /// Reasons why names could not be looked up.
    pub failed_lookups: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    uses: Vec<RuleUse>,
    /// Path of a directory, and the layers that apply below it, outermost directory first.
    dirs: Vec<(Vec<u8>, u32)>,
    /// Layers that match a path; kept for its memory.
    found: Vec<usize>,
    /// Sets of layers, ascending. The number of a set is its index.
    sets: Vec<Vec<usize>>,
    set_numbers: HashMap<Vec<usize>, u32>,
    ids: HashMap<IdKey, Id>,
    owners: HashMap<(u32, Arc<Owner>), Mapped>,
    /// Set of layers of files with several names.
    links: HashMap<LinkKey, u32>,
    /// The last result: consecutive entries of a page share their owner.
    last: Option<(u32, Arc<Owner>, Mapped)>,
    disagreements: Vec<Disagreement>,
    failed_lookups: Vec<String>,
}

/// A user or group, and the set of layers that apply to it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IdKey {
    set: u32,
    class: Class,
    number: u32,
    name: Option<Vec<u8>>,
}

/// The number that a user or group becomes.
#[derive(Debug, Clone, Copy)]
struct Id {
    number: u32,
    /// Number in an ACL, which cannot leave it as it is.
    in_acl: u32,
    /// Index of the rule.
    rule: Option<usize>,
    /// Index of a disagreement.
    disagreement: Option<usize>,
}

/// The owner that an owner becomes.
#[derive(Debug, Clone)]
struct Mapped {
    owner: Arc<Owner>,
    user: Id,
    group: Id,
}

impl Default for OwnerMap {
    /// Sets the numbers in the snapshot.
    fn default() -> OwnerMap {
        OwnerMap::new(Unmatched::ByNumber, Box::new(SystemAccounts))
    }
}

impl OwnerMap {
    /// Returns a map without rules.
    pub fn new(unmatched: Unmatched, accounts: Box<dyn Accounts>) -> OwnerMap {
        OwnerMap {
            layers: Vec::new(),
            for_all: Vec::new(),
            unmatched,
            accounts,
            paths: GlobList::default(),
            layers_of_paths: Vec::new(),
            state: Mutex::default(),
        }
    }

    /// Adds the rules of a file behind all others. `source` names the file in messages.
    ///
    /// ```text
    /// # Rules before the first section apply to all paths.
    /// user git -> forge
    /// [path "registry/**"]
    /// user registry -> 1000
    /// group * -> git
    /// mode D+s,o-rwx
    /// [exact "registry/config.yml"]
    /// acl u::rw-,u:7:r--,g::r--,m::r--,o::---
    /// ```
    pub fn add_file(&mut self, source: &str, text: &[u8]) -> Result<()> {
        let mut layer = Layer::default();
        for (line, content) in crate::glob::lines(text) {
            let place = format!("{source}:{line}");
            let failed = |reason| rule_error(&place, content, reason);
            match rules::line(content).map_err(failed)? {
                rules::Line::Section { path, is_exact } => {
                    let next = Layer { path: Some(path), is_exact, ..Layer::default() };
                    self.add(std::mem::replace(&mut layer, next));
                }
                rules::Line::Rule(class, rule) => {
                    self.add_rule(&mut layer, &place, class, &rule)?;
                }
                rules::Line::Mode(changes) => {
                    let changes = ModeChanges::parse(changes).map_err(failed)?;
                    if layer.mode.is_some() {
                        return Err(failed(RuleError::TwoModes));
                    }
                    layer.mode = Some((changes, self.note_rule(&place, content)));
                }
                rules::Line::Acl(at, value) => {
                    if layer.path.is_none() {
                        return Err(failed(RuleError::AclOfAll));
                    }
                    if layer.acls[at].is_some() {
                        return Err(failed(RuleError::TwoAcls));
                    }
                    layer.acls[at] = Some((value, self.note_rule(&place, content)));
                }
            }
        }
        self.add(layer);
        self.prepare()
    }

    /// Adds rules such as `git:forge,998:1000,100000-165535:+0,*:nobody`, as in rsync's option
    /// `--usermap`. `source` names the option in messages.
    pub fn add_list(&mut self, source: &str, class: Class, list: &[u8]) -> Result<()> {
        let mut layer = Layer::default();
        for item in list.split(|byte| *byte == b',') {
            let failed = |reason| rule_error(source, item, reason);
            let rule = rules::of_list(item).map_err(failed)?;
            self.add_rule(&mut layer, source, class, &rule)?;
        }
        self.add(layer);
        Ok(())
    }

    /// Adds `USER:GROUP`, of which one may be missing: the owner of all entries.
    pub fn add_owner(&mut self, source: &str, owner: &[u8]) -> Result<()> {
        let mut layer = Layer::default();
        let mut parts = owner.splitn(2, |byte| *byte == b':');
        let names = [parts.next(), parts.next()];
        if names.iter().flatten().all(|name| name.is_empty()) {
            return Err(rule_error(source, owner, RuleError::NoOwner));
        }
        for (class, name) in [Class::User, Class::Group].into_iter().zip(names) {
            let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
            let rule = rules::of_all(name).map_err(|reason| rule_error(source, owner, reason))?;
            self.add_rule(&mut layer, source, class, &rule)?;
        }
        self.add(layer);
        Ok(())
    }

    /// Adds changes of all modes, such as `D+s,o-rwx`.
    pub fn add_mode(&mut self, source: &str, changes: &[u8]) -> Result<()> {
        let parsed = ModeChanges::parse(changes);
        let parsed = parsed.map_err(|reason| rule_error(source, changes, reason))?;
        let rule = self.note_rule(source, &[b"mode ", changes].concat());
        self.add(Layer { mode: Some((parsed, rule)), ..Layer::default() });
        Ok(())
    }

    fn add(&mut self, layer: Layer) {
        let has_acl = layer.acls.iter().any(Option::is_some);
        if !layer.users.is_empty() || !layer.groups.is_empty() || layer.mode.is_some() || has_acl {
            if layer.path.is_none() {
                self.for_all.push(self.layers.len());
            }
            self.layers.push(layer);
        }
    }

    /// Prepares the patterns of all layers.
    fn prepare(&mut self) -> Result<()> {
        let patterns = |(at, layer): (usize, &'_ Layer)| Some((at, layer.path.clone()?));
        let patterns: Vec<(usize, Vec<u8>)> =
            self.layers.iter().enumerate().filter_map(patterns).collect();
        self.paths = GlobList::new(patterns.iter().map(|(_, pattern)| &pattern[..]))?;
        self.layers_of_paths = patterns.into_iter().map(|(at, _)| at).collect();
        Ok(())
    }

    fn add_rule(
        &mut self,
        layer: &mut Layer,
        source: &str,
        class: Class,
        rule: &rules::Parsed,
    ) -> Result<()> {
        let text = rule.text(class);
        let failed = |reason| rule_error(source, &text, reason);
        let rule = rule.resolve(class, &*self.accounts).map_err(failed)?;
        let at = self.note_rule(source, &text);
        match class {
            Class::User => layer.users.push((rule, at)),
            Class::Group => layer.groups.push((rule, at)),
        }
        Ok(())
    }

    fn note_rule(&mut self, source: &str, rule: &[u8]) -> usize {
        let uses = &mut self.state.get_mut().uses;
        let (source, rule) = (source.to_owned(), display_path(rule));
        uses.push(RuleUse { source, rule, entries: 0, samples: Vec::new() });
        uses.len() - 1
    }

    /// Returns true if a rule was added.
    pub fn has_rules(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Returns true if every entry keeps the numbers and the mode of the snapshot.
    fn is_identity(&self) -> bool {
        self.layers.is_empty() && self.unmatched == Unmatched::ByNumber
    }

    /// Gives an entry the owner, the mode and the ACLs that a restore sets, and counts the rules
    /// that decided. Path order is the fastest.
    ///
    /// The rules for the first name of a file hold for all its names.
    pub fn apply(&self, entry: &mut Entry) {
        self.apply_rules(entry, true);
    }

    /// Like [`OwnerMap::apply`], for an entry that was counted before.
    pub fn apply_uncounted(&self, entry: &mut Entry) {
        self.apply_rules(entry, false);
    }

    fn apply_rules(&self, entry: &mut Entry, is_counted: bool) {
        if self.is_identity() {
            return;
        }
        let state = &mut *self.state.lock();
        let set = self.layers_of(state, entry);
        let mapped = self.owner(state, set, &entry.owner);
        for id in [mapped.user, mapped.group].iter().filter(|_| is_counted) {
            if let Some(rule) = id.rule {
                state.uses[rule].note(&entry.path);
            }
            if let Some(at) = id.disagreement {
                state.disagreements[at].entries += 1;
            }
        }
        if acl::is_in(&entry.xattrs) {
            let names = entry.acl_names.take();
            let (mut rules, mut disagreements) = (Vec::new(), Vec::new());
            acl::map_subjects(&mut entry.xattrs, |subject| {
                let name = names.as_ref().and_then(|names| names.get(subject));
                let (class, number) = match subject {
                    Subject::User(number) => (Class::User, number),
                    Subject::Group(number) => (Class::Group, number),
                };
                let id = self.id(state, set, class, number, name.map(|name| &name[..]));
                rules.extend(id.rule);
                disagreements.extend(id.disagreement);
                id.in_acl
            });
            let decided = [mapped.user, mapped.group];
            rules.retain(|rule| decided.iter().all(|id| id.rule != Some(*rule)));
            disagreements.retain(|at| decided.iter().all(|id| id.disagreement != Some(*at)));
            rules.sort_unstable();
            rules.dedup();
            disagreements.sort_unstable();
            disagreements.dedup();
            if is_counted {
                rules.iter().for_each(|rule| state.uses[*rule].note(&entry.path));
                disagreements.iter().for_each(|at| state.disagreements[*at].entries += 1);
            }
        }
        entry.owner = mapped.owner;
        let is_dir = entry.kind == EntryKind::Directory;
        if entry.kind != EntryKind::Symlink
            && let Some((changes, rule)) = self.mode_at(state, set, is_dir)
        {
            let mode = changes.apply(entry.mode, is_dir);
            if mode != entry.mode {
                acl::set_mode(&mut entry.xattrs, mode);
            }
            entry.mode = mode;
            if is_counted {
                state.uses[rule].note(&entry.path);
            }
        }
        if entry.kind != EntryKind::Symlink {
            let rules = self.set_acls(state, set, entry);
            rules.iter().filter(|_| is_counted).for_each(|rule| {
                state.uses[*rule].note(&entry.path);
            });
        }
    }

    /// Returns the effects on all entries so far.
    pub fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            rules: state.uses.clone(),
            disagreements: state.disagreements.clone(),
            failed_lookups: state.failed_lookups.clone(),
        }
    }

    /// Returns the number of the set of layers that apply to an entry.
    fn layers_of(&self, state: &mut State, entry: &Entry) -> u32 {
        let set = self.layers_at(state, &entry.path);
        if self.layers_of_paths.is_empty() || entry.hard_link.is_none() {
            return set;
        }
        entry.link_key().map_or(set, |key| *state.links.entry(key).or_insert(set))
    }

    /// Returns the number of the set of layers that apply to a path.
    fn layers_at(&self, state: &mut State, path: &[u8]) -> u32 {
        if self.layers_of_paths.is_empty() {
            return state.number_of(&[]);
        }
        // The layers of a directory's content lack those that are for the directory alone.
        let is_left = |dir: &[u8]| !is_within(path, dir) || dir.len() == path.len();
        while state.dirs.last().is_some_and(|(dir, _)| is_left(dir)) {
            state.dirs.pop();
        }
        let mut number = match state.dirs.last() {
            Some((_, number)) => *number,
            None => state.number_of(&[]),
        };
        let known = state.dirs.last().map_or(0, |(dir, _)| dir.len());
        let mut found = std::mem::take(&mut state.found);
        for end in ends(path).filter(|end| *end > known) {
            let is_end = end == path.len();
            self.paths.matching(&path[..end], &mut found);
            found.iter_mut().for_each(|pattern| *pattern = self.layers_of_paths[*pattern]);
            found.retain(|layer| is_end || !self.layers[*layer].is_exact);
            if !found.is_empty() {
                found.extend(&state.sets[number as usize]);
                found.sort_unstable();
                found.dedup();
                number = state.number_of(&found);
            }
            if !is_end {
                state.dirs.push((path[..end].to_vec(), number));
            }
        }
        state.found = found;
        number
    }

    /// Returns the first answer of the layers that apply, in their order.
    fn first<'m, T>(
        &'m self,
        state: &State,
        set: u32,
        ask: impl Fn(&'m Layer) -> Option<T>,
    ) -> Option<T> {
        let first = |layers: &[usize]| {
            layers.iter().find_map(|at| ask(&self.layers[*at]).map(|answer| (*at, answer)))
        };
        let found = [first(&state.sets[set as usize]), first(&self.for_all)];
        found.into_iter().flatten().min_by_key(|(at, _)| *at).map(|(_, answer)| answer)
    }

    fn mode_at(&self, state: &State, set: u32, is_dir: bool) -> Option<(&ModeChanges, usize)> {
        self.first(state, set, |layer| {
            let mode = layer.mode.as_ref().filter(|(changes, _)| changes.concerns(is_dir));
            mode.map(|(changes, rule)| (changes, *rule))
        })
    }

    /// Gives an entry the ACLs of rules that set them literally. Returns these rules.
    fn set_acls(&self, state: &State, set: u32, entry: &mut Entry) -> Vec<usize> {
        let mut rules = Vec::new();
        let is_dir = entry.kind == EntryKind::Directory;
        for at in 0..acl::WORDS.len() {
            let found = self.first(state, set, |layer| layer.acls[at].as_ref());
            let Some((value, rule)) = found.filter(|_| at == 0 || is_dir) else { continue };
            acl::replace(&mut entry.xattrs, at, value);
            rules.push(*rule);
        }
        rules
    }

    fn owner(&self, state: &mut State, set: u32, owner: &Arc<Owner>) -> Mapped {
        if let Some((last_set, last, mapped)) = &state.last
            && (*last_set, Arc::as_ptr(last)) == (set, Arc::as_ptr(owner))
        {
            return mapped.clone();
        }
        let key = (set, Arc::clone(owner));
        let mapped = match state.owners.get(&key) {
            Some(mapped) => mapped.clone(),
            None => {
                let user = self.id(state, set, Class::User, owner.uid, owner.user.as_deref());
                let group = self.id(state, set, Class::Group, owner.gid, owner.group.as_deref());
                let is_same = (user.number, group.number) == (owner.uid, owner.gid);
                let new = if is_same {
                    Arc::clone(owner)
                } else {
                    Arc::new(Owner { uid: user.number, gid: group.number, ..Owner::clone(owner) })
                };
                let mapped = Mapped { owner: new, user, group };
                if state.owners.len() >= REMEMBERED {
                    state.owners.clear();
                }
                state.owners.insert(key, mapped.clone());
                mapped
            }
        };
        state.last = Some((set, Arc::clone(owner), mapped.clone()));
        mapped
    }

    /// Returns the number that a user or group becomes.
    fn id(
        &self,
        state: &mut State,
        set: u32,
        class: Class,
        number: u32,
        name: Option<&[u8]>,
    ) -> Id {
        let key = IdKey { set, class, number, name: name.map(<[u8]>::to_vec) };
        if let Some(id) = state.ids.get(&key) {
            return *id;
        }
        let matching = self.first(state, set, |layer| {
            let rules = match class {
                Class::User => &layer.users,
                Class::Group => &layer.groups,
            };
            rules.iter().find(|(rule, _)| rule.matches(number, name))
        });
        let id = match matching {
            Some((rule, at)) => {
                let set = match rule.target {
                    Target::Number(set) => Some(set),
                    Target::Shift { from, to } => Some(to + (number - from)),
                    Target::Default => None,
                };
                let id = match set {
                    Some(set) => Id { number: set, in_acl: set, rule: None, disagreement: None },
                    None => self.unmatched_id(state, class, number, name),
                };
                Id { rule: Some(*at), ..id }
            }
            None => self.unmatched_id(state, class, number, name),
        };
        if state.ids.len() >= REMEMBERED {
            state.ids.clear();
        }
        state.ids.insert(key, id);
        id
    }

    fn unmatched_id(
        &self,
        state: &mut State,
        class: Class,
        number: u32,
        name: Option<&[u8]>,
    ) -> Id {
        let set = match (self.unmatched, name) {
            (Unmatched::Unchanged, name) => {
                let here = name.and_then(|name| self.accounts.number(class, name).ok().flatten());
                let in_acl = here.unwrap_or(number);
                return Id { number: UNCHANGED, in_acl, rule: None, disagreement: None };
            }
            (Unmatched::ByName, Some(name)) => match self.accounts.number(class, name) {
                Ok(found) => found.unwrap_or(number),
                Err(reason) => {
                    if state.failed_lookups.len() < SAMPLES {
                        state.failed_lookups.push(reason.to_string());
                    }
                    number
                }
            },
            _ => number,
        };
        let mut id = Id { number: set, in_acl: set, rule: None, disagreement: None };
        let Some(name) = name else { return id };
        let here = if set == number { self.accounts.name(class, number) } else { None };
        let name_here = here.filter(|here| here != name);
        if set == number && name_here.is_none() {
            return id;
        }
        let (name, name_here) = (display_path(name), name_here.map(|name| display_path(&name)));
        let is_known =
            |of: &Disagreement| (of.class, of.number, &of.name) == (class, number, &name);
        if let Some(at) = state.disagreements.iter().position(is_known) {
            id.disagreement = Some(at);
            return id;
        }
        if state.disagreements.len() == DISAGREEMENTS {
            return id;
        }
        id.disagreement = Some(state.disagreements.len());
        state.disagreements.push(Disagreement { class, name, number, set, name_here, entries: 0 });
        id
    }
}

impl State {
    fn number_of(&mut self, set: &[usize]) -> u32 {
        if let Some(number) = self.set_numbers.get(set) {
            return *number;
        }
        let number = u32::try_from(self.sets.len()).expect("fewer sets than entries of a tree");
        self.sets.push(set.to_vec());
        self.set_numbers.insert(set.to_vec(), number);
        number
    }
}

impl RuleUse {
    fn note(&mut self, path: &[u8]) {
        self.entries += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push(format!("/{}", display_path(path)));
        }
    }
}

fn rule_error(source: &str, rule: &[u8], reason: RuleError) -> Error {
    let (source_name, rule) = (source.to_owned(), display_path(rule));
    match reason {
        RuleError::Unknown { class, name } => {
            let account = format!("{} {name}", class.word());
            Error::UnknownAccount { source_name, rule, account }
        }
        reason => Error::OwnerRule { source_name, rule, reason: reason.to_string() },
    }
}

#[cfg(test)]
mod tests;
