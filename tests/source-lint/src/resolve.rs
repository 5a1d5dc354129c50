//! From a path to what it names, through imports, re-exports and globs.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use crate::name_table::{DefinitionId, Enclosing, Glob, Meaning, NameTable, Namespace, ROOT, ScopeId};

/// What a path names in this crate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// An item, and the segment after it in the path.
    Item(DefinitionId, Option<String>),
    /// A module.
    Module(ScopeId),
    /// A name that a module does not define in its text, so that a macro must define it.
    Generated(ScopeId),
}

/// What a name means in a scope.
enum Lookup {
    /// One thing, or one for each configuration.
    Found(Vec<Target>),
    /// Something of another crate.
    External,
    /// Nothing: the prelude may have it, a generic parameter or a local variable may be it.
    Missing,
}

/// Where something that a path names is defined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file.
    pub file: Rc<Path>,
    /// The scope in it.
    pub scope: ScopeId,
}

impl NameTable {
    /// Where the items are defined that a path names in these namespaces: none for a module, and none for an item of
    /// another crate.
    pub fn origins(&self, from: ScopeId, path: &[String], namespaces: &[Namespace]) -> BTreeSet<Origin> {
        let targets = namespaces.iter().flat_map(|namespace| Query::new(self).path(from, path, *namespace));
        without_guesses(targets.collect()).iter().flat_map(|target| self.origins_of(target)).collect()
    }

    /// The types that a path names.
    pub fn types(&self, from: ScopeId, path: &[String]) -> Vec<DefinitionId> {
        let targets = Query::new(self).path(from, path, Namespace::Type);
        targets.iter().filter_map(|target| if let Target::Item(id, _) = target { Some(*id) } else { None }).collect()
    }

    /// The modules that a path names.
    pub fn module_origins(&self, from: ScopeId, path: &[String]) -> BTreeSet<Origin> {
        let targets = Query::new(self).path(from, path, Namespace::Type);
        let modules =
            targets.iter().filter_map(|target| if let Target::Module(id) = target { Some(*id) } else { None });
        modules.filter_map(|id| Some(Origin { file: Rc::clone(&self.scope(id)?.file), scope: id })).collect()
    }

    /// Whether a glob import of this path in a scope binds a name.
    pub fn glob_binds(&self, scope: ScopeId, path: &[String], name: &str) -> bool {
        let glob = Glob { path: path.to_vec(), public: false };
        let namespaces = [Namespace::Type, Namespace::Value, Namespace::Macro];
        namespaces.iter().any(|it| matches!(Query::new(self).through_glob(scope, &glob, name, *it), Lookup::Found(_)))
    }

    /// Whether a scope is another one or inside it.
    pub fn is_inside(&self, scope: ScopeId, outer: ScopeId) -> bool {
        let outward = |id: &ScopeId| match self.scope(*id)?.enclosing {
            Enclosing::Root => None,
            Enclosing::Module(outer) | Enclosing::Block(outer) => Some(outer),
        };
        std::iter::successors(Some(scope), outward).any(|id| id == outer)
    }

    fn origins_of(&self, target: &Target) -> Vec<Origin> {
        match target {
            Target::Module(_) => Vec::new(),
            Target::Generated(id) => {
                self.scope(*id).map(|scope| Origin { file: Rc::clone(&scope.file), scope: *id }).into_iter().collect()
            }
            Target::Item(id, associated) => {
                let Some(item) = self.definition(*id) else { return Vec::new() };
                let elsewhere = associated.as_ref().and_then(|name| item.associated.get(name)).into_iter().flatten();
                let files = std::iter::once(&item.file).chain(elsewhere);
                files.map(|file| Origin { file: Rc::clone(file), scope: item.scope }).collect()
            }
        }
    }

    /// The module that a scope is or is in.
    fn module_of(&self, scope: ScopeId) -> ScopeId {
        match self.scope(scope).map(|scope| scope.enclosing) {
            Some(Enclosing::Block(outer)) => self.module_of(outer),
            _ => scope,
        }
    }

    fn parent_of(&self, module: ScopeId) -> Option<ScopeId> {
        match self.scope(module)?.enclosing {
            Enclosing::Module(parent) => Some(parent),
            Enclosing::Root | Enclosing::Block(_) => None,
        }
    }
}

/// One path being resolved.
struct Query<'a> {
    table: &'a NameTable,
    /// The names being looked up, so that imports that name each other end.
    open: Vec<(ScopeId, String, Namespace)>,
}

impl<'a> Query<'a> {
    fn new(table: &'a NameTable) -> Self {
        Self { table, open: Vec::new() }
    }

    /// What a path names, seen from a scope. Empty for what is not of this crate.
    fn path(&mut self, from: ScopeId, path: &[String], namespace: Namespace) -> Vec<Target> {
        let Some((first, mut rest)) = path.split_first() else { return Vec::new() };
        let mut targets = self.first(from, first, if rest.is_empty() { namespace } else { Namespace::Type });
        if rest.is_empty() && targets.is_empty() && namespace == Namespace::Macro {
            return self.table.macros(first).iter().map(|id| Target::Item(*id, None)).collect();
        }
        while let Some((segment, after)) = rest.split_first() {
            let namespace = if after.is_empty() { namespace } else { Namespace::Type };
            targets = targets.into_iter().flat_map(|target| self.next(from, target, segment, namespace)).collect();
            rest = after;
        }
        without_guesses(targets)
    }

    fn first(&mut self, from: ScopeId, segment: &str, namespace: Namespace) -> Vec<Target> {
        match segment {
            "crate" => vec![Target::Module(ROOT)],
            "self" => vec![Target::Module(self.table.module_of(from))],
            "super" => self.table.parent_of(self.table.module_of(from)).map(Target::Module).into_iter().collect(),
            name => match self.in_scopes(from, name, namespace) {
                Lookup::Found(targets) => targets,
                Lookup::External | Lookup::Missing => Vec::new(),
            },
        }
    }

    fn next(&mut self, from: ScopeId, target: Target, segment: &str, namespace: Namespace) -> Vec<Target> {
        match target {
            Target::Item(id, None) => vec![Target::Item(id, Some(segment.to_owned()))],
            Target::Item(..) | Target::Generated(_) => vec![target],
            Target::Module(id) if segment == "super" => {
                self.table.parent_of(id).map(Target::Module).into_iter().collect()
            }
            Target::Module(id) => match self.in_scope(id, segment, namespace, from) {
                Lookup::Found(targets) => targets,
                Lookup::Missing if !self.has_external_glob(id) => vec![Target::Generated(id)],
                Lookup::External | Lookup::Missing => Vec::new(),
            },
        }
    }

    /// A name in a scope and, while that is a block, in what encloses it.
    fn in_scopes(&mut self, from: ScopeId, name: &str, namespace: Namespace) -> Lookup {
        let mut scope = from;
        loop {
            match (self.in_scope(scope, name, namespace, from), self.table.scope(scope).map(|scope| scope.enclosing)) {
                (Lookup::Missing, Some(Enclosing::Block(outer))) => scope = outer,
                (lookup, _) => return lookup,
            }
        }
    }

    /// A name in one scope, as `viewer` sees it.
    fn in_scope(&mut self, id: ScopeId, name: &str, namespace: Namespace, viewer: ScopeId) -> Lookup {
        let key = (id, name.to_owned(), namespace);
        if self.open.contains(&key) {
            return Lookup::Missing;
        }
        self.open.push(key);
        let lookup = match self.among_bindings(id, name, namespace, viewer) {
            Lookup::Missing => self.through_globs(id, name, namespace, viewer),
            lookup => lookup,
        };
        self.open.pop();
        lookup
    }

    fn among_bindings(&mut self, id: ScopeId, name: &str, namespace: Namespace, viewer: ScopeId) -> Lookup {
        let Some(scope) = self.table.scope(id) else { return Lookup::Missing };
        let inside = self.table.is_inside(viewer, id);
        let mut targets = Vec::new();
        let mut external = false;
        for binding in scope.bindings.get(name).into_iter().flatten().filter(|binding| inside || binding.public) {
            match &binding.meaning {
                Meaning::Item(item, namespaces) if namespaces.contains(&namespace) => {
                    targets.push(Target::Item(*item, None));
                }
                Meaning::Module(module) if namespace == Namespace::Type => targets.push(Target::Module(*module)),
                Meaning::Import(path) => {
                    let imported = self.path(id, path, namespace);
                    external |= imported.is_empty();
                    targets.extend(imported);
                }
                Meaning::Item(..) | Meaning::Module(_) => {}
            }
        }
        match (without_guesses(targets), external) {
            (targets, false) if targets.is_empty() => Lookup::Missing,
            (targets, true) if targets.is_empty() => Lookup::External,
            (targets, _) => Lookup::Found(targets),
        }
    }

    fn through_globs(&mut self, id: ScopeId, name: &str, namespace: Namespace, viewer: ScopeId) -> Lookup {
        let Some(scope) = self.table.scope(id) else { return Lookup::Missing };
        let inside = self.table.is_inside(viewer, id);
        for glob in scope.globs.iter().filter(|glob| inside || glob.public) {
            let lookup = self.through_glob(id, glob, name, namespace);
            if !matches!(lookup, Lookup::Missing) {
                return lookup;
            }
        }
        Lookup::Missing
    }

    fn through_glob(&mut self, id: ScopeId, glob: &Glob, name: &str, namespace: Namespace) -> Lookup {
        for target in self.path(id, &glob.path, Namespace::Type) {
            let lookup = match target {
                Target::Module(module) => self.in_scope(module, name, namespace, id),
                Target::Item(item, None)
                    if self.table.definition(item).is_some_and(|it| it.variants.contains(name)) =>
                {
                    Lookup::Found(vec![Target::Item(item, None)])
                }
                Target::Item(..) | Target::Generated(_) => Lookup::Missing,
            };
            if !matches!(lookup, Lookup::Missing) {
                return lookup;
            }
        }
        Lookup::Missing
    }

    /// Whether a module imports every name of another crate's module, so that any name may come from there.
    fn has_external_glob(&mut self, id: ScopeId) -> bool {
        let Some(scope) = self.table.scope(id) else { return false };
        scope.globs.iter().any(|glob| self.path(id, &glob.path, Namespace::Type).is_empty())
    }
}

/// Drops guesses that a macro defines a name where the name was found.
fn without_guesses(mut targets: Vec<Target>) -> Vec<Target> {
    if targets.iter().any(|target| !matches!(target, Target::Generated(_))) {
        targets.retain(|target| !matches!(target, Target::Generated(_)));
    }
    targets
}
