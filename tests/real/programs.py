# SPDX-License-Identifier: MIT
"""Real programs as private instances: own data, own sockets, nothing outside their directory."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time

PREPARED_HUGE_PAGES = "VMEM_HUGETLBFS"  # where scripts/real-programs mounted a hugetlbfs


class Unavailable(Exception):
    """Cannot run on this machine."""


def _find(*names):
    for name in names:
        if path := shutil.which(name):
            return path
    raise Unavailable(f"not installed: {names[0]}")


def _start(directory, arguments, user=None, environment=None, stdin=subprocess.DEVNULL):
    """Its output goes to a file, read when it does not come up."""
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(directory, account.pw_uid, account.pw_gid)
        arguments = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}",
                     "--clear-groups", *arguments]
    with open(f"{directory}/log", "ab") as log:
        return subprocess.Popen(arguments, cwd=directory, stdin=stdin, stdout=log, stderr=log,
                                env={**os.environ, "HOME": directory, **(environment or {})},
                                start_new_session=True)


def _await(process, directory, ready, what, timeout=60):
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            with open(f"{directory}/log", encoding="utf-8", errors="replace") as log:
                tail = log.read()[-1500:]
            raise Unavailable(f"{what} did not come up: {tail}")
        time.sleep(0.1)


def _log_has(directory, text):
    def ready():
        with open(f"{directory}/log", encoding="utf-8", errors="replace") as log:
            return text in log.read()
    return ready


def _postgres_bin():
    versions = "/usr/lib/postgresql"
    for version in sorted(os.listdir(versions) if os.path.isdir(versions) else [], key=int,
                          reverse=True):
        if os.path.exists(f"{versions}/{version}/bin/initdb"):
            return f"{versions}/{version}/bin"
    raise Unavailable("not installed: postgresql")


def _postgres(directory, huge_pages):
    bin_directory = _postgres_bin()
    as_user = lambda *a: subprocess.run(  # noqa: E731
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *a], cwd=directory,
        check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    account = pwd.getpwnam("postgres")
    os.chown(directory, account.pw_uid, account.pw_gid)
    as_user(f"{bin_directory}/initdb", "-D", f"{directory}/data", "-A", "trust", "--no-sync",
            "--no-instructions", "-E", "UTF8", "--locale=C")
    settings = {"listen_addresses": "", "unix_socket_directories": directory, "fsync": "off",
                "shared_buffers": "256MB", "huge_pages": huge_pages,
                "max_parallel_workers_per_gather": "2"}
    server = _start(directory, [f"{bin_directory}/postgres", "-D", f"{directory}/data",
                                *(x for k, v in settings.items() for x in ("-c", f"{k}={v}"))],
                    user="postgres")
    socket_path = f"{directory}/.s.PGSQL.5432"
    _await(server, directory, lambda: os.path.exists(socket_path) and
           subprocess.run([f"{bin_directory}/pg_isready", "-q", "-h", directory],
                          check=False).returncode == 0, "postgres")
    as_user(f"{bin_directory}/pgbench", "-h", directory, "-i", "-q", "-s", "8", "postgres")
    # Clients that stay: their backends are what users look at.
    _start(directory, [f"{bin_directory}/pgbench", "-h", directory, "-n", "-c", "4", "-j", "1",
                       "-T", "600", "postgres"], user="postgres")
    time.sleep(2)


def postgres(directory):
    _postgres(directory, "off")


def postgres_huge(directory):
    _postgres(directory, "on")


def redis(directory):
    # The server is a name of the program in redis-tools: no service has to be installed.
    path = shutil.which("redis-server")
    if path is None:
        path = f"{directory}/redis-server"
        os.symlink(_find("redis-check-rdb"), path)
    socket_path = f"{directory}/socket"
    server = _start(directory, [path, "--port", "0", "--unixsocket", socket_path, "--save", "",
                                "--dir", directory], user="nobody")
    _await(server, directory, lambda: os.path.exists(socket_path), "redis")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path)
        replies = client.makefile("rb")
        for batch in range(40):
            request = b""
            for i in range(1000):
                key = b"key:%d" % (batch * 1000 + i)
                value = (b"%d-" % i) * (i % 300 + 1)
                request += b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (
                    len(key), key, len(value), value)
            client.sendall(request)
            for _ in range(1000):
                if not replies.readline().startswith(b"+OK"):
                    raise Unavailable("redis did not take the data")
        # A save's child shares the server's pages: stopped while it lives, if it is quick.
        client.sendall(b"BGSAVE\r\n")
        replies.readline()


JAVA_SOURCE = """
import java.util.*;
public class Fill {
  public static void main(String[] arguments) throws Exception {
    List<byte[]> held = new ArrayList<>();
    for (int i = 0; i < 1500; i++) { byte[] b = new byte[64 << 10]; Arrays.fill(b, (byte) i); held.add(b); }
    Map<String, String> map = new HashMap<>();
    for (int i = 0; i < 200000; i++) map.put("key" + i, "value" + i);
    for (int i = 0; i < 8; i++) { Thread t = new Thread(() -> { try { Thread.sleep(600000); } catch (Exception e) { } }); t.start(); }
    java.nio.ByteBuffer direct = java.nio.ByteBuffer.allocateDirect(16 << 20);
    for (int i = 0; i < direct.capacity(); i += 4096) direct.put(i, (byte) 1);
    System.out.println("ready");
    Thread.sleep(600000);
    System.out.println(held.size() + map.size() + direct.capacity());
  }
}
"""


def _java(directory, *options):
    compiler = _find("javac")
    with open(f"{directory}/Fill.java", "w", encoding="utf-8") as f:
        f.write(JAVA_SOURCE)
    subprocess.run([compiler, "Fill.java"], cwd=directory, check=True)
    vm = _start(directory, [_find("java"), "-Xms384m", "-Xmx384m", *options, "Fill"])
    _await(vm, directory, _log_has(directory, "ready"), "java")


def jvm(directory):
    _java(directory)


def jvm_thp(directory):
    _java(directory, "-XX:+UseTransparentHugePages", "-XX:+AlwaysPreTouch")


def jvm_zgc(directory):
    _java(directory, "-XX:+UseZGC")  # maps one memfd several times


NODE_SOURCE = """
const held = [];
for (let i = 0; i < 200; i++) held.push(Buffer.alloc(128 * 1024, i));
for (let i = 0; i < 200000; i++) held.push({i, s: 'text' + i});
const memory = new WebAssembly.Memory({initial: 16, maximum: 1024});
new Uint8Array(memory.buffer).fill(7);
const {Worker} = require('worker_threads');
new Worker('setInterval(() => 0, 1e6)', {eval: true}).on('online', () => console.log('ready'));
setInterval(() => held.length + memory.buffer.byteLength, 1e6);
"""


def node(directory):
    server = _start(directory, [_find("node", "nodejs"), "-e", NODE_SOURCE])
    _await(server, directory, _log_has(directory, "ready"), "node")


PAGE_SOURCE = """<!doctype html><title>vmem</title><canvas id=c width=800 height=600></canvas><script>
const held = []; for (let i = 0; i < 100; i++) held.push(new Uint8Array(1 << 18).fill(i));
const g = document.getElementById('c').getContext('2d');
for (let i = 0; i < 500; i++) { g.fillStyle = 'hsl(' + i + ',80%,50%)'; g.fillRect(i, i % 600, 90, 90); }
new WebAssembly.Memory({initial: 16, maximum: 1000});
</script>"""


def chromium(directory):
    with open(f"{directory}/page.html", "w", encoding="utf-8") as f:
        f.write(PAGE_SOURCE)
    browser = _start(directory, [
        _find("chromium", "chromium-browser"), "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-breakpad",
        "--remote-debugging-port=0", f"--user-data-dir={directory}/profile",
        f"file://{directory}/page.html"])
    _await(browser, directory, _log_has(directory, "DevTools listening"), "chromium")
    time.sleep(3)


def dpdk(directory):
    mount = os.environ.get(PREPARED_HUGE_PAGES)
    if not mount:
        raise Unavailable("no hugetlbfs could be mounted")
    primary = _start(directory, [
        _find("dpdk-testpmd"), "-l", "0-1" if os.cpu_count() > 1 else "0,0", "-m", "256",
        "--no-pci", "--vdev=net_null0", "--iova-mode=pa", "--file-prefix=vmem-real",
        f"--huge-dir={mount}", "--", "--nb-cores=1", "--total-num-mbufs=2048", "-i"],
        stdin=subprocess.PIPE, environment={"RUNTIME_DIRECTORY": directory})
    _await(primary, directory, _log_has(directory, "testpmd>"), "dpdk-testpmd")
    return primary  # whoever holds this holds its stdin


def kinds(directory, program, *names):
    os.mkdir(f"{directory}/files")
    child = _start(directory, [program, f"{directory}/files", *names], stdin=subprocess.PIPE)
    _await(child, directory, _log_has(directory, "ready\n"), "memory-kinds")
    with open(f"{directory}/log", encoding="utf-8", errors="replace") as log:
        for line in log:
            if line.startswith("skip\t"):
                print(f"SKIPPED: memory kind {line[5:].rstrip()}", file=sys.stderr, flush=True)
    return child


# name, how to start it, 2 MiB huge pages that it needs
ALL = [
    ("memory-kinds", kinds, 16),
    ("60,000 VMAs", lambda d, program: kinds(d, program, "many-vmas"), 0),
    ("postgres", postgres, 0),
    ("postgres, huge pages", postgres_huge, 200),
    ("redis", redis, 0),
    ("jvm", jvm, 0),
    ("jvm, THP", jvm_thp, 0),
    ("jvm, ZGC", jvm_zgc, 0),
    ("node", node, 0),
    ("chromium", chromium, 0),
    ("dpdk primary", dpdk, 300),
]
