//! Stand-ins for the clouds' object stores: moto (S3), fake-gcs-server (Google), Azurite (Azure).

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Running, free_port, tool};

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Runs curl, which must succeed.
fn curl(words: &[&str]) {
    let output = Command::new("curl")
        .args(["-sS", "--fail-with-body"])
        .args(words)
        .output()
        .expect("curl is installed");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "curl {words:?}: {text}");
}

/// An S3 server that checks signatures.
pub struct Moto {
    _running: Running,
    /// Where it listens.
    pub port: u16,
    /// A key's id and secret that may read.
    pub key: (String, String),
}

/// Makes a bucket, a user who may read it, and the objects; then everything has to be signed.
const MOTO_SETUP: &str = "
import sys, json, boto3, urllib.request
base, *pairs = sys.argv[1:]
make = lambda name: boto3.client(name, endpoint_url=base, region_name='eu-west-1', aws_access_key_id='x', aws_secret_access_key='x')
iam, s3 = make('iam'), make('s3')
iam.create_user(UserName='reader')
allow = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': 's3:*', 'Resource': '*'}]}
iam.put_user_policy(UserName='reader', PolicyName='read', PolicyDocument=json.dumps(allow))
key = iam.create_access_key(UserName='reader')['AccessKey']
s3.create_bucket(Bucket='contexts', CreateBucketConfiguration={'LocationConstraint': 'eu-west-1'})
for name, path in zip(pairs[::2], pairs[1::2]): s3.upload_file(path, 'contexts', name)
urllib.request.urlopen(urllib.request.Request(base + '/moto-api/reset-auth', data=b'0', method='POST', headers={'content-type': 'text/plain'}))
print(key['AccessKeyId'], key['SecretAccessKey'])
";

impl Moto {
    /// Starts one with a bucket `contexts` that holds these files.
    pub fn start(objects: &[(&str, &Path)]) -> Self {
        let port = free_port();
        let mut command = Command::new(tool("python/bin/moto_server"));
        quiet(command.args(["-H", "127.0.0.1", "-p", &port.to_string()]));
        command.env("INITIAL_NO_AUTH_ACTION_COUNT", "1000000");
        let running = Running::start(&mut command, port);
        let url = format!("http://127.0.0.1:{port}");
        let mut setup = Command::new(tool("python/bin/python"));
        setup.args(["-c", MOTO_SETUP, &url]);
        for (name, path) in objects {
            setup.arg(name).arg(path);
        }
        let output = setup.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace().map(str::to_owned);
        let key = (words.next().unwrap(), words.next().unwrap());
        Self { _running: running, port, key }
    }
}

/// An S3 server that gives ranges of large objects without reading the whole; it checks signatures, too.
pub struct S3rver {
    _running: Running,
    /// Where it listens.
    pub port: u16,
}

impl S3rver {
    /// The only key that it knows: id and secret are the same.
    pub const KEY: &'static str = "S3RVER";

    /// Starts one with an empty bucket `contexts`; its files go to `directory`.
    pub fn start(directory: &Path) -> Self {
        let port = free_port();
        let mut command = Command::new(tool("node_modules/.bin/s3rver"));
        quiet(command.args(["--address", "127.0.0.1", "--port", &port.to_string(), "--silent"]));
        command.args(["--configure-bucket", "contexts", "--directory"]).arg(directory);
        Self { _running: Running::start(&mut command, port), port }
    }

    /// Puts a file into the bucket.
    pub fn put(&self, key: &str, file: &Path) {
        let url = format!("http://127.0.0.1:{}/contexts/{key}", self.port);
        let user = format!("{0}:{0}", Self::KEY);
        let words = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user, "--upload-file"];
        let unsigned = ["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"];
        curl(&[&words[..], &[&file.display().to_string()], &unsigned, &[&url]].concat());
    }
}

/// A Cloud Storage server.
pub struct FakeGcs {
    _running: Running,
    /// Where it listens.
    pub port: u16,
}

impl FakeGcs {
    /// Starts one with an empty bucket `contexts`, which keeps its objects in memory.
    pub fn start() -> Self {
        Self::with(&["-backend", "memory"])
    }

    /// The same with objects that are files in `directory`.
    pub fn start_in(directory: &Path) -> Self {
        Self::with(&["-backend", "filesystem", "-filesystem-root", &directory.display().to_string()])
    }

    fn with(backend: &[&str]) -> Self {
        let port = free_port();
        let mut command = Command::new(tool("fake-gcs-server"));
        quiet(command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string()]));
        command.args(backend);
        let server = Self { _running: Running::start(&mut command, port), port };
        let url = format!("http://127.0.0.1:{port}/storage/v1/b");
        curl(&["-X", "POST", "-H", "content-type: application/json", "-d", "{\"name\":\"contexts\"}", &url]);
        server
    }

    /// Puts a file into the bucket.
    pub fn put(&self, key: &str, file: &Path) {
        let url = format!(
            "http://127.0.0.1:{}/upload/storage/v1/b/contexts/o?uploadType=media&name={key}",
            self.port
        );
        let kind = "content-type: application/octet-stream";
        // `--data-binary` would read the whole into memory.
        curl(&["-X", "POST", "-H", kind, "--upload-file", &file.display().to_string(), &url]);
    }
}

/// A Blob Storage server.
pub struct Azurite {
    _running: Running,
    /// Where it listens.
    pub port: u16,
}

impl Azurite {
    /// The account that every Azurite has, and its key, as they stand in its documentation.
    pub const ACCOUNT: &'static str = "devstoreaccount1";
    /// The account's key.
    pub const KEY: &'static str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts one; its files go to `directory`.
    pub fn start(directory: &Path) -> Self {
        let port = free_port();
        let mut command = Command::new(tool("node_modules/.bin/azurite-blob"));
        quiet(command.args([
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            &port.to_string(),
            "--skipApiVersionCheck",
        ]));
        command.args(["--silent", "--disableTelemetry", "--location"]).arg(directory);
        Self { _running: Running::start(&mut command, port), port }
    }

    /// A shared access signature of the account that may read everything for an hour, as a query.
    pub fn signature() -> String {
        let script = "import sys, hmac, hashlib, base64, urllib.parse, datetime\n\
            account, key = sys.argv[1:]\n\
            end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).strftime('%Y-%m-%dT%H:%M:%SZ')\n\
            fields = {'sv': '2021-08-06', 'ss': 'b', 'srt': 'sco', 'sp': 'rl', 'se': end, 'spr': 'https,http'}\n\
            text = '\\n'.join([account, 'rl', 'b', 'sco', '', end, '', 'https,http', '2021-08-06', '', ''])\n\
            fields['sig'] = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()\n\
            print(urllib.parse.urlencode(fields))\n";
        crate::work::ok("python3", &["-c", script, Self::ACCOUNT, Self::KEY]).trim().to_owned()
    }

    /// The address that stands in for `https://ACCOUNT.blob.core.windows.net`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{}", self.port, Self::ACCOUNT)
    }

    /// Puts a file into the container `contexts`, which is made for it.
    pub fn put(&self, name: &str, file: &Path) {
        let script = "import sys, hmac, hashlib, base64, urllib.request, urllib.error, urllib.parse, email.utils\n\
            base, account, key, name, path = sys.argv[1:]\n\
            def call(method, where, query, headers, body):\n\
            \x20   headers = dict(headers, **{'x-ms-date': email.utils.formatdate(usegmt=True), 'x-ms-version': '2021-08-06'})\n\
            \x20   ms = ''.join(f'{k}:{headers[k]}\\n' for k in sorted(headers) if k.startswith('x-ms-'))\n\
            \x20   length = str(len(body)) if body else ''\n\
            \x20   text = f'{method}\\n\\n\\n{length}\\n\\napplication/octet-stream\\n\\n\\n\\n\\n\\n\\n{ms}/{account}/{account}/{where}'\n\
            \x20   text += ''.join(f'\\n{k}:{v}' for k, v in sorted(query.items()))\n\
            \x20   signed = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()\n\
            \x20   headers.update({'authorization': f'SharedKey {account}:{signed}', 'content-type': 'application/octet-stream'})\n\
            \x20   url = f'{base}/{where}' + ('?' + urllib.parse.urlencode(query) if query else '')\n\
            \x20   request = urllib.request.Request(url, data=body, headers=headers, method=method)\n\
            \x20   return urllib.request.urlopen(request)\n\
            try: call('PUT', 'contexts', {'restype': 'container'}, {}, b'')\n\
            except urllib.error.HTTPError as error: assert error.code == 409, error.read()\n\
            blocks = []\n\
            with open(path, 'rb') as file:\n\
            \x20   while block := file.read(64 << 20):\n\
            \x20       number = base64.b64encode(b'%08d' % len(blocks)).decode()\n\
            \x20       blocks.append(number)\n\
            \x20       call('PUT', f'contexts/{name}', {'comp': 'block', 'blockid': number}, {}, block)\n\
            listed = ''.join(f'<Latest>{number}</Latest>' for number in blocks)\n\
            call('PUT', f'contexts/{name}', {'comp': 'blocklist'}, {}, f'<BlockList>{listed}</BlockList>'.encode())\n";
        let output = Command::new("python3")
            .args(["-c", script, &self.endpoint(), Self::ACCOUNT, Self::KEY, name])
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
