use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const FILES: [&str; 6] =
    ["ca.crt", "ca.key", "server.crt", "server.key", "client.crt", "client.key"];

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("certs");
    (dir, folder)
}

fn contents(folder: &Path) -> Vec<String> {
    FILES.iter().map(|name| fs::read_to_string(folder.join(name)).unwrap()).collect()
}

fn changed(before: &[String], after: &[String]) -> Vec<&'static str> {
    let pairs = FILES.iter().zip(before.iter().zip(after));
    pairs.filter(|(_, (before, after))| before != after).map(|(name, _)| *name).collect()
}

fn accepted(folder: &Path, leaf: &Leaf, at: SystemTime) -> bool {
    let authority = Authority::load_or_create(folder, at).unwrap();
    let path = folder.join(format!("{}.crt", leaf.name));
    let certificate = read_certificate(&path).unwrap().unwrap();
    authority.check(leaf, &certificate, at).is_ok()
}

#[test]
fn what_is_made_is_private_and_verifies_for_its_use_alone() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    for name in FILES {
        let mode = fs::metadata(folder.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    for host in ["localhost", "127.0.0.1", "::1"] {
        assert!(accepted(&folder, &Leaf::server(host).unwrap(), now), "{host}");
    }
    assert!(!accepted(&folder, &Leaf::server("broker.example").unwrap(), now));
    assert!(accepted(&folder, &Leaf::client().unwrap(), now));

    let server_as_client = Leaf { name: "server", ..Leaf::client().unwrap() };
    assert!(!accepted(&folder, &server_as_client, now), "a server's certificate is no client's");
    let client_as_server = Leaf { name: "client", ..Leaf::server("localhost").unwrap() };
    assert!(!accepted(&folder, &client_as_server, now), "a client's certificate is no server's");
}

#[test]
fn a_second_start_changes_nothing() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    let before = contents(&folder);
    load_or_create(&folder, "127.0.0.1", now + 334 * DAY).unwrap();
    assert_eq!(changed(&before, &contents(&folder)), [""; 0]);
}

#[test]
fn leaves_near_their_end_are_made_again_from_the_same_keys() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    let before = contents(&folder);
    for days in [336, 400] {
        let later = now + days * DAY;
        load_or_create(&folder, "127.0.0.1", later).unwrap();
        assert_eq!(changed(&before, &contents(&folder)), ["server.crt", "client.crt"]);
        assert!(accepted(&folder, &Leaf::client().unwrap(), later + 300 * DAY));
    }
}

#[test]
fn another_advertised_host_makes_the_server_certificate_again() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    let before = contents(&folder);
    for host in ["broker.example", "192.0.2.7", "2001:db8::7"] {
        load_or_create(&folder, host, now).unwrap();
        assert_eq!(changed(&before, &contents(&folder)), ["server.crt"]);
        assert!(accepted(&folder, &Leaf::server(host).unwrap(), now));
        assert!(accepted(&folder, &Leaf::server("localhost").unwrap(), now));
    }
    let error = load_or_create(&folder, "no host", now).err().unwrap();
    assert!(error.to_string().contains("broker.advertised_host"), "{error}");
}

#[test]
fn a_crash_between_two_files_is_completed_by_the_next_start() {
    let now = SystemTime::now();
    for missing in FILES {
        let (_dir, folder) = folder();
        load_or_create(&folder, "127.0.0.1", now).unwrap();
        fs::remove_file(folder.join(missing)).unwrap();
        load_or_create(&folder, "127.0.0.1", now).unwrap();
        assert!(accepted(&folder, &Leaf::client().unwrap(), now), "{missing}");
        assert!(accepted(&folder, &Leaf::server("::1").unwrap(), now), "{missing}");
        assert_eq!(folder.join(missing).exists(), missing != "ca.key");
    }
}

#[test]
fn leaves_follow_an_authority_that_was_made_anew() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    let before = contents(&folder);
    fs::remove_file(folder.join("ca.crt")).unwrap();
    fs::remove_file(folder.join("ca.key")).unwrap();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    let changed = changed(&before, &contents(&folder));
    assert_eq!(changed, ["ca.crt", "ca.key", "server.crt", "client.crt"]);
    assert!(accepted(&folder, &Leaf::client().unwrap(), now));
}

#[test]
fn a_damaged_file_is_named_and_stays_as_it_is() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    for name in FILES {
        let path = folder.join(name);
        let whole = fs::read_to_string(&path).unwrap();
        for damage in ["", "-----BEGIN", &whole.replacen("M", "N", 1)] {
            fs::write(&path, damage).unwrap();
            let error = load_or_create(&folder, "127.0.0.1", now).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("remove"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn without_the_authoritys_key_only_what_is_valid_is_served() {
    let (_dir, folder) = folder();
    let now = SystemTime::now();
    load_or_create(&folder, "127.0.0.1", now).unwrap();
    fs::remove_file(folder.join("ca.key")).unwrap();
    load_or_create(&folder, "127.0.0.1", now + 300 * DAY).unwrap();
    let error = load_or_create(&folder, "127.0.0.1", now + 360 * DAY).err().unwrap().to_string();
    assert!(error.contains("server.crt") && error.contains("ca.key"), "{error}");
}

#[test]
fn a_key_of_another_authority_is_refused() {
    let ((_one_dir, one), (_other_dir, other)) = (folder(), folder());
    let now = SystemTime::now();
    load_or_create(&one, "127.0.0.1", now).unwrap();
    load_or_create(&other, "127.0.0.1", now).unwrap();
    fs::copy(one.join("ca.key"), other.join("ca.key")).unwrap();
    let error = load_or_create(&other, "127.0.0.1", now).err().unwrap().to_string();
    assert!(error.contains("does not belong"), "{error}");
}
