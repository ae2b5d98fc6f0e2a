//! Paths of uploaded files. They depend on the uploader and on the object that the upload belongs
//! to.

use super::hashed;
use serde::Deserialize;

/// A row of `uploads`.
#[derive(Debug, Default, Deserialize)]
pub struct Row {
    pub id: i64,
    pub path: Option<String>,
    pub size: Option<i64>,
    /// Class of the object that it belongs to.
    pub model_type: Option<String>,
    pub model_id: Option<i64>,
    /// Class of its uploader.
    pub uploader: Option<String>,
    pub secret: Option<String>,
    /// `group/project`, if it belongs to a project.
    pub route: Option<String>,
    /// Version of the storage of that project, if the project is known.
    pub storage_version: Option<i64>,
}

impl Row {
    /// Returns possible paths below the directory of uploads, the likeliest first. `base_dir` is
    /// the directory of uploads of the system in the settings.
    ///
    /// The path in the row is either complete, or relative to the directory of the object. That
    /// depends on GitLab's version and on the storage of the project.
    pub fn places(&self, base_dir: Option<&str>) -> Vec<String> {
        let inner = |path: &'_ str| {
            let path = path.trim_start_matches('/');
            path.strip_prefix("uploads/").unwrap_or(path).to_owned()
        };
        let base = base_dir.map(|dir| inner(dir.trim_end_matches('/')));
        let base = base.filter(|dir| !dir.is_empty()).unwrap_or_else(|| SYSTEM.into());
        let path = inner(self.path.as_deref().unwrap_or_default());
        let mut dirs = self.dirs(&base);
        let is_within = |dir: &String| path.strip_prefix(dir.as_str()).is_some_and(is_below);
        let is_whole = ["-/", "@hashed/", "system/"].iter().any(|start| path.starts_with(start))
            || is_within(&base)
            || dirs.iter().any(is_within);
        // GitLab looks for files of these uploaders in no other place.
        let is_certain = self.is_of_directory() && !dirs.is_empty();
        if !is_certain {
            // Old uploads are below a directory that was renamed since.
            dirs.push(SYSTEM.into());
        }
        let mut places = Vec::new();
        if !is_certain || !is_whole {
            places.extend(dirs.iter().map(|dir| format!("{dir}/{path}")));
            // Some rows have only the name here, and the directory in another column.
            if let (Some(secret), false) = (&self.secret, path.contains('/')) {
                places.extend(dirs.iter().map(|dir| format!("{dir}/{secret}/{path}")));
            }
        }
        if let Some(rest) = path.strip_prefix("system/") {
            places.push(format!("{SYSTEM}/{rest}"));
        }
        if is_whole {
            places.insert(0, path);
        } else if !is_certain {
            places.push(path);
        }
        places
    }

    /// Returns true if the uploader keeps files in a directory of the object.
    fn is_of_directory(&self) -> bool {
        let uploader = self.uploader.as_deref();
        uploader.is_some_and(|uploader| uploader.ends_with("FileUploader"))
    }

    /// Returns the directories that an uploader may use for the object: one, if all is known.
    fn dirs(&self, base: &str) -> Vec<String> {
        let Some(id) = self.model_id else { return Vec::new() };
        let model = self.model_type.as_deref().unwrap_or_default();
        match (self.uploader.as_deref().unwrap_or_default(), model) {
            ("NamespaceFileUploader", _) | (_, "Namespace" | "Group") => {
                vec![format!("{base}/namespace/{id}")]
            }
            ("PersonalFileUploader", "User") => vec![format!("{base}/user/{id}")],
            ("PersonalFileUploader", _) | (_, "Snippet" | "PersonalSnippet") => {
                vec![format!("{base}/personal_snippet/{id}")]
            }
            (_, "Project") => match (self.storage_version, &self.route) {
                (Some(HASHED..), _) => vec![hashed(id)],
                (Some(_), Some(route)) => vec![route.clone()],
                (_, route) => [hashed(id)].into_iter().chain(route.clone()).collect(),
            },
            _ => Vec::new(),
        }
    }
}

/// Usual directory of uploads of the system.
const SYSTEM: &str = "-/system";

/// First version of a project's storage that has its attachments in a hashed directory.
const HASHED: i64 = 2;

fn is_below(rest: &str) -> bool {
    rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_every_uploader_are_known() {
        let one = "@hashed/6b/86/6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
        let hashed = format!("{one}/secret/a.png");
        for (uploader, model, path, place) in [
            ("FileUploader", "Project", "secret/a.png", "group/project/secret/a.png"),
            ("FileUploader", "Project", "secret/a.png", hashed.as_str()),
            ("FileUploader", "Project", hashed.as_str(), hashed.as_str()),
            ("FileUploader", "Project", "group/project/secret/a.png", "group/project/secret/a.png"),
            ("NamespaceFileUploader", "Namespace", "s/a.png", "-/system/namespace/1/s/a.png"),
            ("PersonalFileUploader", "Snippet", "s/a.png", "-/system/personal_snippet/1/s/a.png"),
            ("PersonalFileUploader", "User", "s/a.png", "-/system/user/1/s/a.png"),
            (
                "PersonalFileUploader",
                "Snippet",
                "uploads/-/system/personal_snippet/1/s/a.png",
                "-/system/personal_snippet/1/s/a.png",
            ),
            (
                "PersonalFileUploader",
                "Snippet",
                "a.png",
                "-/system/personal_snippet/1/secret/a.png",
            ),
            (
                "AvatarUploader",
                "Project",
                "uploads/-/system/project/avatar/1/a",
                "-/system/project/avatar/1/a",
            ),
            (
                "AttachmentUploader",
                "Note",
                "uploads/-/system/note/attachment/1/a",
                "-/system/note/attachment/1/a",
            ),
            (
                "AvatarUploader",
                "User",
                "uploads/system/user/avatar/1/a",
                "-/system/user/avatar/1/a",
            ),
        ] {
            let row = Row {
                path: Some(path.into()),
                model_type: Some(model.into()),
                model_id: Some(1),
                uploader: Some(uploader.into()),
                secret: Some("secret".into()),
                route: (model == "Project").then(|| "group/project".into()),
                ..Row::default()
            };
            let places = row.places(None);
            assert!(places.iter().any(|known| known == place), "{place}: {places:?}");
        }
        // No path leads out of the directory.
        let row = Row { path: Some("/etc/passwd".into()), ..Row::default() };
        assert!(row.places(None).iter().all(|place| !place.starts_with('/')));
    }

    #[test]
    fn files_are_expected_only_where_gitlab_looks() {
        let row = |uploader: &str, model: &str, storage_version| Row {
            path: Some("secret/a.png".into()),
            model_type: Some(model.into()),
            model_id: Some(1),
            uploader: Some(uploader.into()),
            route: Some("group/project".into()),
            storage_version,
            ..Row::default()
        };
        let hashed = format!("{}/secret/a.png", hashed(1));
        for (version, place) in [
            (Some(0), "group/project/secret/a.png"),
            (Some(1), "group/project/secret/a.png"),
            (Some(2), hashed.as_str()),
        ] {
            assert_eq!(row("FileUploader", "Project", version).places(None), [place]);
        }
        assert_eq!(row("FileUploader", "Project", None).places(None).len(), 2);
        for (uploader, model, place) in [
            ("NamespaceFileUploader", "Namespace", "namespace/1"),
            ("PersonalFileUploader", "Snippet", "personal_snippet/1"),
            ("PersonalFileUploader", "User", "user/1"),
        ] {
            let row = row(uploader, model, None);
            for (base, shown) in
                [(None, "-/system"), (Some("uploads/-/other"), "-/other"), (Some("/mine/"), "mine")]
            {
                assert_eq!(row.places(base), [format!("{shown}/{place}/secret/a.png")]);
            }
        }
        let mut whole = row("PersonalFileUploader", "User", None);
        whole.path = Some("uploads/mine/user/1/secret/a.png".into());
        assert_eq!(whole.places(Some("uploads/mine")), ["mine/user/1/secret/a.png"]);
    }
}
