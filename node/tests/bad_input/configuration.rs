//! A configuration that cannot be used: `holdfast run` names the file and everything that is wrong in it, at once.

use std::path::Path;

use crate::sidecar::{Site, assert_says, holdfast, refused};

/// A configuration that would be accepted. It gives all of the timing, so as not to depend on the defaults.
const SOUND: &str = r#"
[cluster]
name = "files"
nodes = [{ id = 1, address = "127.0.0.1:7400" }]
[cluster.timing]
heartbeat_interval_ms = 60
election_timeout_min_ms = 180
election_timeout_max_ms = 300
self_fence_after_ms = 1200
clock_skew_max_ms = 50
node_down_after_ms = 1300
[node]
id = 1
data_dir = "/nonexistent/holdfast"
"#;

fn refused_config(text: &str) -> String {
    let site = Site::alone();
    let path = site.write_config(text);
    let error = refused_file(&path);
    assert_says(&error, &[&path.display().to_string()]);
    error
}

fn refused_file(path: &Path) -> String {
    let mut command = holdfast(["run", "--config"]);
    command.arg(path);
    refused(command)
}

#[test]
fn timing_that_cannot_be_safe_is_refused_with_the_inequality() {
    let text = SOUND.replace("self_fence_after_ms = 1200", "self_fence_after_ms = 1250");
    let inequality = "self_fence_after_ms (1250) + clock_skew_max_ms (50) < node_down_after_ms (1300)";
    assert_says(&refused_config(&text), &["[cluster.timing]", inequality, "does not hold"]);
}

#[test]
fn numbers_at_the_end_of_their_range_are_refused_and_not_wrapped() {
    for value in ["heartbeat_interval_ms = 60", "self_fence_after_ms = 1200", "election_timeout_max_ms = 300"]
    {
        let (name, _) = value.split_once(" = ").expect("a name and a value");
        let error = refused_config(&SOUND.replace(value, &format!("{name} = {}", i64::MAX)));
        assert_says(&error, &["[cluster.timing]", &format!("{name} ({})", i64::MAX), "does not hold"]);
    }
    let error = refused_config(&SOUND.replace("heartbeat_interval_ms = 60", "heartbeat_interval_ms = -1"));
    assert_says(&error, &["line 6", "heartbeat_interval_ms", "-1"]);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let error = refused_config(
        r#"
        [cluster]
        name = ""
        nodes = [
            { id = 1, address = "nowhere" },
            { id = 1, address = ":7400" },
            { id = 0, address = "a host:7400" },
            { id = 4, address = "127.0.0.1:0" },
        ]
        [cluster.timing]
        heartbeat_interval_ms = 60
        election_timeout_min_ms = 100
        [cluster.limits]
        opens_max = 0
        [node]
        id = 9
        data_dir = ""
        log = "node=loud"
        [samba]
        run_dir = ""
        smb_conf = ""
        "#,
    );
    assert_says(
        &error,
        &[
            "[cluster] name: must have 1 to 64 bytes",
            "[cluster] nodes: 4 given; 3 or 5 survive",
            "\"nowhere\", is not host:port",
            "\":7400\", is not host:port",
            "\"a host:7400\", is not host:port",
            "\"127.0.0.1:0\", is not host:port",
            "id 1 is given to nowhere and to :7400",
            "ids begin at 1",
            "heartbeat_interval_ms (60) ≤ election_timeout_min_ms (100) does not hold",
            "[cluster.limits] opens_max = 0",
            "[node] id = 9: the cluster has no such node",
            "[node] data_dir: must not be empty",
            "[node] log = \"node=loud\"",
            "[samba] run_dir: must not be empty",
            "[samba] smb_conf: must not be empty",
        ],
    );
}

#[test]
fn a_run_directory_whose_socket_would_have_no_name_is_refused() {
    let run_dir = format!("/run/{}", "long".repeat(30));
    let text = format!("{SOUND}[samba]\nrun_dir = \"{run_dir}\"\nsmb_conf = \"/etc/samba/smb.conf\"\n");
    assert_says(&refused_config(&text), &["[samba] run_dir", &run_dir, "bytes", "choose a shorter one"]);
}

#[test]
fn a_misspelt_field_is_named_with_its_line_and_the_right_ones() {
    let error = refused_config(&SOUND.replace("heartbeat_interval_ms", "heartbeat_ms"));
    assert_says(&error, &["line 6", "unknown field `heartbeat_ms`", "`heartbeat_interval_ms`"]);
}

#[test]
fn a_value_of_another_type_and_a_missing_one_are_named() {
    let listen = SOUND.replace("id = 1\ndata", "id = 1\nlisten = \"everywhere\"\ndata");
    assert_says(&refused_config(&listen), &["line 14", "listen", "invalid socket address"]);
    let (cluster, _) = SOUND.split_once("[node]").expect("it has one");
    assert_says(&refused_config(cluster), &["missing field `node`"]);
    assert_says(&refused_config("\u{0}\u{1}[["), &["line 1"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let site = Site::alone();
    let missing = site.path("missing.toml");
    assert_says(&refused_file(&missing), &[&missing.display().to_string(), "No such file"]);
    let directory = site.path("");
    assert_says(&refused_file(&directory), &["cannot read the configuration", "directory"]);
    let binary = site.path("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe, 0]).expect("a file");
    assert_says(&refused_file(&binary), &[&binary.display().to_string(), "UTF-8"]);
}

#[test]
fn an_address_that_cannot_be_found_is_named_with_the_way_out() {
    let text = SOUND.replace("127.0.0.1:7400", "no-such-host.invalid:7400");
    let site = Site::alone();
    let error = refused_file(&site.write_config(&text));
    assert_says(
        &error,
        &["cannot find the address of this node", "no-such-host.invalid:7400", "[node] listen"],
    );
}

#[test]
fn an_address_of_another_machine_cannot_be_listened_at() {
    let text = SOUND.replace("127.0.0.1:7400", "192.0.2.1:7400");
    let site = Site::alone();
    assert_says(&refused_file(&site.write_config(&text)), &["cannot listen at 192.0.2.1:7400", "node 1"]);
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let mut site = Site::alone();
    let file = site.path("a-file");
    std::fs::write(&file, "").expect("a file");
    site.data_dir = file.join("data");
    let error = refused(site.run());
    assert_says(
        &error,
        &["cannot create the data directory", &site.data_dir.display().to_string(), "Not a directory"],
    );
}
