//! What a registry asks for when it answers 401 (`WWW-Authenticate`, RFC 9110, section 11).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use shoal_protocol::reference::Repository;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and password with each request.
    Basic,
    /// A token of a realm.
    Bearer {
        /// The URL to get one from.
        realm: String,
        /// Names the registry to the realm.
        service: Option<String>,
        /// What the token is to allow, as the registry words it.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge of an answer that this client can meet: Bearer before Basic.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let challenges: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(parse)
            .collect();
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or(challenges.first()).cloned()
    }

    /// The scope to ask a token for: the registry's own wording where it asks for no more than to
    /// pull one repository (behind a path prefix it knows the name better), else ours.
    pub(super) fn pull_scope(&self, repository: &Repository) -> String {
        if let Self::Bearer {
            scope: Some(scope), ..
        } = self
            && scope.starts_with("repository:")
            && scope.ends_with(":pull")
            && !scope.contains(' ')
        {
            return scope.clone();
        }
        format!("repository:{repository}:pull")
    }
}

/// The challenges of one header line. A line may hold several, separated by the comma that also
/// separates the parameters of one.
fn parse(line: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = line.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=', '\t']).unwrap_or(rest.len());
        let word = rest[..end].to_ascii_lowercase();
        let after = rest[end..].trim_start();
        rest = if let Some(value) = after.strip_prefix('=') {
            let (value, after) = parameter_value(value.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word, value));
            }
            after
        } else {
            found.push((word, Vec::new()));
            after
        }
        .trim_start_matches([' ', ',', '\t']);
    }
    found
        .into_iter()
        .filter_map(|(scheme, parameters)| {
            let parameter = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key == name);
                found.map(|(_, value)| value.clone())
            };
            match scheme.as_str() {
                "basic" => Some(Challenge::Basic),
                "bearer" => Some(Challenge::Bearer {
                    realm: parameter("realm")?,
                    service: parameter("service"),
                    scope: parameter("scope"),
                }),
                _ => None,
            }
        })
        .collect()
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        for (line, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/redis:pull"),
                )],
            ),
            (
                r#"Basic realm="https://ecr.amazonaws.com/",service="ecr.amazonaws.com""#,
                vec![Challenge::Basic],
            ),
            (
                r#"Negotiate, bearer  realm = "https://a/t" , scope="repository:x:pull,push", BASIC realm="r""#,
                vec![
                    bearer("https://a/t", None, Some("repository:x:pull,push")),
                    Challenge::Basic,
                ],
            ),
            (
                r#"Bearer realm=https://a/t,service="say \"hi\"""#,
                vec![bearer("https://a/t", Some("say \"hi\""), None)],
            ),
            (r#"Bearer service="no realm""#, vec![]),
            (
                r#"Bearer realm="never closed"#,
                vec![bearer("never closed", None, None)],
            ),
            ("", vec![]),
            ("=,=,= ,", vec![]),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn no_more_than_pull_is_ever_asked_for() {
        let repository = "team/app".parse().unwrap();
        for (scope, asked) in [
            (None, "repository:team/app:pull"),
            (
                Some("repository:team/app:pull,push"),
                "repository:team/app:pull",
            ),
            (Some("registry:catalog:*"), "repository:team/app:pull"),
            (
                Some("repository:proxy/team/app:pull"),
                "repository:proxy/team/app:pull",
            ),
        ] {
            assert_eq!(
                bearer("https://a", None, scope).pull_scope(&repository),
                asked
            );
        }
    }
}
