//! Routes: the places that are asked for a repository, in order. Pulls go through maps and mirrors, then to the registry
//! itself; pushes go to the registry alone.

use kiln_oci::Repository;

use crate::Attempt;
use crate::options::Mirrors;

/// Whether we fetch or send: flags about HTTP and TLS differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Pull,
    Push,
}

/// One place that is asked for a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The host as the user writes it: `docker.io`, `mirror.example:5000`.
    pub(crate) host: String,
    /// The repository's path there.
    pub(crate) path: String,
    /// The registry that this one stands in for.
    pub(crate) mirror_of: Option<String>,
    pub(crate) direction: Direction,
}

impl Place {
    /// The registry itself.
    pub(crate) fn origin(repository: &Repository, direction: Direction) -> Self {
        Self {
            host: repository.host().to_owned(),
            path: repository.path().to_owned(),
            mirror_of: None,
            direction,
        }
    }

    /// The host that requests go to, by oci-client's rule for references: docker.io is a name, not an address.
    pub(crate) fn wire_host(&self) -> &str {
        wire_host(&self.host)
    }

    /// oci-client's name for `identifier` (a tag or a digest) in this place.
    pub(crate) fn reference(&self, identifier: &str) -> oci_client::Reference {
        let (host, path) = (self.wire_host().to_owned(), self.path.clone());
        if identifier.contains(':') {
            oci_client::Reference::with_digest(host, path, identifier.to_owned())
        } else {
            oci_client::Reference::with_tag(host, path, identifier.to_owned())
        }
    }

    /// What errors say was tried here. The login is filled in when it is known.
    pub(crate) fn attempt(&self, action: &'static str, subject: String) -> Attempt {
        Attempt {
            action,
            subject,
            host: self.host.clone(),
            mirror_of: self.mirror_of.clone(),
            login: "none was needed so far".to_owned(),
        }
    }
}

/// The address behind a registry's name.
pub(crate) fn wire_host(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// The places for pulling from `repository`, in order. Never empty.
pub(crate) fn places(repository: &Repository, mirrors: &Mirrors) -> Vec<Place> {
    let origin = Place::origin(repository, Direction::Pull);
    let hub: &[String] = if repository.host() == "docker.io" { &mirrors.docker_hub } else { &[] };
    let mapped = mirrors
        .maps
        .iter()
        .filter(|(from, _)| canonical(from) == repository.host())
        .map(|(_, to)| to)
        .chain(hub);
    let mut places: Vec<Place> = Vec::new();
    for mirror in mapped {
        let mirror = mirror.trim().trim_end_matches('/');
        let mirror =
            mirror.strip_prefix("https://").or_else(|| mirror.strip_prefix("http://")).unwrap_or(mirror);
        let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
        if host.is_empty() {
            continue;
        }
        let path = match prefix.trim_matches('/') {
            "" => repository.path().to_owned(),
            prefix => format!("{prefix}/{}", repository.path()),
        };
        let host = canonical(host).to_owned();
        let mirror_of =
            (host != repository.host() || path != repository.path()).then(|| repository.host().to_owned());
        let place = Place { host, path, mirror_of, direction: Direction::Pull };
        if !places.contains(&place) {
            places.push(place);
        }
    }
    if places.is_empty() || (!mirrors.no_fallback && !places.contains(&origin)) {
        places.push(origin);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(image: &str, mirrors: &Mirrors) -> Vec<String> {
        let reference: kiln_oci::Reference = image.parse().unwrap();
        places(&reference.repository, mirrors)
            .iter()
            .map(|place| format!("{}/{}", place.wire_host(), place.path))
            .collect()
    }

    #[test]
    fn maps_come_first_then_mirrors_then_the_registry() {
        let mirrors = Mirrors {
            docker_hub: vec!["mirror.gcr.io".into(), "m.example/hub/".into()],
            maps: vec![
                ("index.docker.io".into(), "map.example:5000".into()),
                ("gcr.io".into(), "g.example".into()),
            ],
            no_fallback: false,
        };
        assert_eq!(
            listed("debian", &mirrors),
            [
                "map.example:5000/library/debian",
                "mirror.gcr.io/library/debian",
                "m.example/hub/library/debian",
                "registry-1.docker.io/library/debian"
            ]
        );
        assert_eq!(listed("gcr.io/a/b", &mirrors), ["g.example/a/b", "gcr.io/a/b"]);
        assert_eq!(listed("quay.io/a/b", &mirrors), ["quay.io/a/b"]);
    }

    #[test]
    fn without_fallback_only_mirrors_are_asked_where_there_are_any() {
        let mirrors =
            Mirrors { docker_hub: vec!["m.example".into()], no_fallback: true, ..Mirrors::default() };
        assert_eq!(listed("debian", &mirrors), ["m.example/library/debian"]);
        assert_eq!(listed("quay.io/a/b", &mirrors), ["quay.io/a/b"]);
    }
}
