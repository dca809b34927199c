# SPDX-License-Identifier: Apache-2.0
"""A real gemmd under real load, scraped by a real Prometheus with the rules of deploy/. Ports are free ones."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
DEADLINE_SECONDS = 60
# Each kind of request that the CPU worker can be asked, so that every series of the dashboards moves.
LOADS = (
    ("--shapes=tiny", "--transport=host", "--concurrency=4", "--connections=2"),
    ("--shapes=tiny", "--transport=inline", "--weights=request", "--path=stream", "--concurrency=2"),
    ("--shapes=moe", "--moe_groups=4", "--moe_tokens=8", "--moe_top_k=2", "--transport=inline", "--concurrency=1"),
)


class ScrapedDaemon:
    """Context manager. `build`: folder of the programs; `prometheus`: its program; `interval`: between scrapes."""

    def __init__(self, build, prometheus, interval="500ms"):
        self.bin = pathlib.Path(build) / "bin"
        self.folder = tempfile.TemporaryDirectory()
        self.children = []
        self.moment = None  # Of all queries; None: now.
        try:
            self.server, metrics = self._start_gemmd()
            self.url = self._start_prometheus(prometheus, metrics, interval)
            self.wait_for("up == 1")  # Takes it five seconds.
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.kill()
            child.wait()
            if child.stdout:
                child.stdout.close()
        self.folder.cleanup()

    def _start_gemmd(self):
        server = f"unix:{self.folder.name}/gemmd.sock"
        daemon = subprocess.Popen([self.bin / "gemmd", f"--listen={server}", "--metrics_listen=127.0.0.1:0", "--workers=cpu"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.children.append(daemon)
        ready = daemon.stdout.readline()  # Ends with the process at the latest.
        found = re.search(r" metrics=(\S+)", ready)
        if not found:
            raise AssertionError(f"gemmd did not start: {ready!r}")
        return server, found.group(1)

    def _start_prometheus(self, program, target, interval):
        rules = str(DEPLOY / "prometheus/rules/*.yaml")
        config = os.path.join(self.folder.name, "prometheus.yaml")
        with open(config, "w", encoding="utf-8") as file:
            yaml.safe_dump({
                "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
                "rule_files": [rules],
                "scrape_configs": [{"job_name": "gemmd", "static_configs": [{"targets": [target]}]}],
            }, file)
        log = os.path.join(self.folder.name, "prometheus.log")
        with open(log, "w", encoding="utf-8") as file:
            self.children.append(subprocess.Popen(
                [program, f"--config.file={config}", f"--storage.tsdb.path={self.folder.name}/tsdb",
                 "--web.listen-address=127.0.0.1:0"], stderr=file))
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            text = pathlib.Path(log).read_text(encoding="utf-8")
            found = re.search(r'msg="Listening on" address=(\S+)', text)
            if found and "Server is ready to receive web requests" in text:
                return "http://" + found.group(1)
            if self.children[-1].poll() is not None or time.monotonic() > end:
                raise AssertionError("prometheus did not start: " + text)
            time.sleep(0.05)

    def load(self, seconds, loads=LOADS):
        """Runs the loads at once; raises if one fails."""
        clients = [subprocess.Popen([self.bin / "gemmload", f"--server={self.server}", f"--duration={seconds}s", "--warmup=0s",
                                     *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for flags in loads]
        self.children += clients
        for client in clients:
            output, _ = client.communicate(timeout=seconds + DEADLINE_SECONDS)
            if client.returncode != 0:
                raise AssertionError(output)

    def _get(self, path, **parameters):
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}",
                                    timeout=DEADLINE_SECONDS) as response:
            return json.load(response)["data"]

    def query(self, expression):
        """The instant vector of an expression."""
        data = self._get("query", query=expression, **({"time": self.moment} if self.moment else {}))
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return data["result"]

    def query_range(self, expression, start, end, step):
        return self._get("query_range", query=expression, start=start, end=end, step=step)["result"]

    def wait_for(self, *expressions):
        """Until all have a result. Returns the moment at which they had."""
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            moment = time.time()
            missing = [expression for expression in expressions if not self._get("query", query=expression, time=moment)["result"]]
            if not missing:
                return moment
            if time.monotonic() > end:
                raise AssertionError(f"no result: {missing}")
            time.sleep(0.1)

    def stay_at(self, moment):
        """Answers all later queries as of then. Now is a bad time on a busy machine: one late scrape, and every series is stale."""
        self.moment = moment
