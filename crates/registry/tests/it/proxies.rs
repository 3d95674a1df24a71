//! Proxies, and addresses of the sixth version.

use bytes::Bytes;
use kiln_oci::Reference;
use kiln_registry::{Insecure, Proxies, Registry, RegistryOptions, RetryPolicy};
use kiln_testkit::{StandIn, TestRegistry};

use super::{options, quick, reference, registry, repository, small_image};

fn through(proxy: &StandIn, no_proxy: &str) -> Registry {
    let address = Some(proxy.url());
    Registry::new(RegistryOptions {
        insecure: Insecure { registries: vec!["reg.example.com".to_owned()], ..Insecure::default() },
        proxies: Proxies { http: address.clone(), https: address, no_proxy: Some(no_proxy.to_owned()) },
        retries: RetryPolicy { pull: 0, ..quick() },
        ..options()
    })
    .unwrap()
}

#[tokio::test]
async fn requests_go_through_the_proxy_but_for_hosts_that_are_excepted() {
    let proxy = StandIn::start().await;
    proxy.answer("GET", "/v2/", 200, "");
    let name: Reference = "reg.example.com/app:1".parse().unwrap();
    let error = through(&proxy, "other.example.com").head(&name).await.unwrap_err();
    assert!(error.is_not_found(), "the proxy's answer is the registry's: {error}");
    let asked = proxy.asked();
    let last = asked.last().unwrap();
    assert_eq!((last.method.as_str(), last.path.as_str()), ("HEAD", "/v2/app/manifests/1"));
    assert_eq!(last.header("host"), "reg.example.com");
    let before = asked.len();
    assert!(through(&proxy, ".example.com").head(&name).await.is_err());
    assert_eq!(proxy.asked().len(), before, "a host under NO_PROXY is spoken to directly");
    // This machine is never behind a proxy.
    let near = TestRegistry::start().await;
    near.put_image("app", "1", &small_image());
    through(&proxy, "").head(&reference(&near, "app:1")).await.unwrap();
    assert_eq!(proxy.asked().len(), before);
}

#[tokio::test]
async fn networks_and_everything_can_be_excepted() {
    let proxy = StandIn::start().await;
    proxy.answer("GET", "/v2/", 200, "");
    let server = TestRegistry::start().await;
    server.put_image("app", "1", &small_image());
    // This machine, by an address that isn't known as such.
    let host = server.host().replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let name: Reference = format!("{host}/app:1").parse().unwrap();
    let address = Some(proxy.url());
    for (no_proxy, direct) in [
        ("", false),
        ("::ffff:10.0.0.0/104", false),
        ("other.example, ::ffff:127.0.0.0/104", true),
        ("*", true),
        ("other.example,*", true),
    ] {
        let registry = Registry::new(RegistryOptions {
            insecure: Insecure { registries: vec![host.clone()], ..Insecure::default() },
            proxies: Proxies {
                http: address.clone(),
                https: address.clone(),
                no_proxy: Some(no_proxy.to_owned()),
            },
            retries: RetryPolicy { pull: 0, ..quick() },
            ..options()
        });
        let (before, seen) = (proxy.asked().len(), server.seen().len());
        let found = registry.unwrap().head(&name).await;
        assert_eq!(found.is_ok(), direct, "{no_proxy:?}: {found:?}");
        assert_eq!(proxy.asked().len() == before, direct, "{no_proxy:?}");
        assert_eq!(server.seen().len() > seen, direct, "{no_proxy:?}");
    }
}

#[tokio::test]
async fn a_proxy_is_told_its_password_and_nobody_else_is() {
    let proxy = StandIn::start().await;
    proxy.answer("GET", "/v2/", 200, "");
    let address = Some(proxy.url().replace("http://", "http://me:hunter2@"));
    let registry = Registry::new(RegistryOptions {
        insecure: Insecure { registries: vec!["reg.example.com".to_owned()], ..Insecure::default() },
        proxies: Proxies { http: address.clone(), https: address, no_proxy: None },
        retries: RetryPolicy { pull: 0, ..quick() },
        ..options()
    });
    let error = registry.unwrap().head(&"reg.example.com/app:1".parse().unwrap()).await.unwrap_err();
    let asked = proxy.asked();
    let methods: Vec<&str> = asked.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["CONNECT", "GET", "HEAD"]);
    for asked in &asked {
        assert_eq!(asked.header("proxy-authorization"), "Basic bWU6aHVudGVyMg==", "{asked:?}");
    }
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_registry_with_an_address_of_version_6_is_pushed_to_and_pulled_from() {
    let server = TestRegistry::builder().ipv6().start().await;
    assert!(server.host().starts_with("[::1]:"), "{}", server.host());
    let image = small_image();
    let (registry, to) = (registry(), repository(&server, "app"));
    for (descriptor, bytes) in image.blobs() {
        registry.push_blob(&to, &descriptor, &Bytes::from(bytes)).await.unwrap();
    }
    let name = reference(&server, "app:1");
    let kind = image.manifest.value().media_type();
    let digest = registry.push_manifest(&name, kind, image.manifest.raw()).await.unwrap();
    assert_eq!(registry.head(&name).await.unwrap().descriptor.digest, digest);
}
