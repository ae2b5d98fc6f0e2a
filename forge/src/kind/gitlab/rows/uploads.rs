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
}

impl Row {
    /// Returns possible paths below the directory of uploads, the likeliest first.
    ///
    /// The path in the row is either complete, or relative to the directory of the object. That
    /// depends on GitLab's version and on the storage of the project.
    pub fn places(&self) -> Vec<String> {
        let path = self.path.as_deref().unwrap_or_default().trim_start_matches('/');
        let path = path.strip_prefix("uploads/").unwrap_or(path);
        let mut dirs = Vec::new();
        if let Some(id) = self.model_id {
            let model = self.model_type.as_deref().unwrap_or_default();
            match (self.uploader.as_deref().unwrap_or_default(), model) {
                ("NamespaceFileUploader", _) | (_, "Namespace" | "Group") => {
                    dirs.push(format!("-/system/namespace/{id}"));
                }
                ("PersonalFileUploader", "User") => dirs.push(format!("-/system/user/{id}")),
                ("PersonalFileUploader", _) | (_, "Snippet" | "PersonalSnippet") => {
                    dirs.push(format!("-/system/personal_snippet/{id}"));
                }
                (_, "Project") => {
                    dirs.push(hashed(id));
                    dirs.extend(self.route.clone());
                }
                _ => {}
            }
        }
        let is_whole = ["-/", "@hashed/", "system/"].iter().any(|start| path.starts_with(start));
        // Old uploads are below a directory that was renamed since.
        dirs.push("-/system".into());
        let mut places: Vec<String> = dirs.iter().map(|dir| format!("{dir}/{path}")).collect();
        // Some rows have only the name here, and the directory in another column.
        if let (Some(secret), false) = (&self.secret, path.contains('/')) {
            places.extend(dirs.iter().map(|dir| format!("{dir}/{secret}/{path}")));
        }
        if let Some(rest) = path.strip_prefix("system/") {
            places.push(format!("-/system/{rest}"));
        }
        places.insert(if is_whole { 0 } else { places.len() }, path.to_owned());
        places
    }
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
            let places = row.places();
            assert!(places.iter().any(|known| known == place), "{place}: {places:?}");
        }
        // No path leads out of the directory.
        let row = Row { path: Some("/etc/passwd".into()), ..Row::default() };
        assert!(row.places().iter().all(|place| !place.starts_with('/')));
    }
}
