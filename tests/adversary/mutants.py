"""Break single lines of the payment path, and check that the adversary notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "airflow_provider_jojokey"
ROOT = Path(__file__).parents[2]

# What breaks, the module, the source, and its replacement.
MUTANTS: list[tuple[str, str, str, str]] = [
    ("a live attempt is not waited for", "payments/decision.py", "        if is_alive(attempt):\n", "        if False:\n"),
    ("a changed prompt hides an open attempt", "payments/decision.py", "same = [attempt for attempt in counting if attempt.fingerprint == fingerprint]", "same = [attempt for attempt in counting[:1] if attempt.fingerprint == fingerprint]"),
    ("unbilled attempts are reconciled again", "payments/decision.py", "        if attempt.outcome is Outcome.NOT_BILLED:\n", "        if False:\n"),
    ("a late loss overwrites stored images", "payments/attempt.py", "Outcome.COMPLETE: frozenset({Event.DETAIL})", "Outcome.COMPLETE: frozenset(Event)"),
    ("an empty log proves that nothing was billed", "payments/evidence.py", "    return _unknown(facts, request)\n", "    if facts.finished and facts.log is not None and request is None:\n        return Verdict(Event.PROVEN_UNBILLED, '')\n    return _unknown(facts, request)\n"),
    ("a row that fits in time proves a charge", "payments/evidence.py", "    return Verdict(Event.LOST, reason, final=facts.finished, hint=hint)", "    event = Event.PROVEN_BILLED if hint else Event.LOST\n    return Verdict(event, reason, usage=hint and hint['usage'])"),
    ("a failed channel proves a failed request", "payments/evidence.py", "if request is not None and facts.overdue and _logs_charges_after(facts, request):", "if request is not None:"),
    ("an attempt sends whenever it gets to it", "payments/send.py", "if elapsed > (context.send_window if sends else SEND_DEADLINE):", "if False:"),
    ("the time is not checked after the mark", "payments/send.py", "        check_time()  # again", "        # again"),
    ("the mark of a send is not written", "payments/send.py", "            spool.mark_sending(at, context.store.clock)\n", "            pass\n"),
    ("a quoted request ID counts as the request's own", "payments/send.py", 'request_id=known.get("request_id")', "request_id=error.request_id"),
    ("a SIGTERM is not noticed before a send", "payments/context.py", "        if self.stopping.is_set():\n", "        if False:\n"),
    ("images in the spool are not looked for", "payments/generate.py", "if found := orphans(context, receipt):", "if found := []:"),
    ("orphans of another prompt are left behind", "payments/reconcile.py", "        if context.spool_of(attempt).exists and not context.is_alive(attempt)\n", "        if context.spool_of(attempt).exists and not context.is_alive(attempt) and attempt.fingerprint == context.fingerprint\n"),
    ("a live attempt counts as orphaned", "payments/reconcile.py", "if context.spool_of(attempt).exists and not context.is_alive(attempt)", "if context.spool_of(attempt).exists"),
    ("orphaned images replace later ones", "payments/reconcile.py", "    if any(later.images for later in receipt.attempts[position + 1 :]):\n        return None\n", ""),
    ("a broken response is thrown away", "payments/reconcile.py", "    salvaged, known = context.uploader.upload_partial(attempt, spool, known_keys), attempt\n", "    salvaged, known = {'images': attempt.images, 'kept': attempt.kept, 'preview': attempt.preview}, attempt\n"),
    ("stored images of a lost spool are not found", "payments/reconcile.py", "        salvaged[\"images\"], request_id = adopt.stored_images(context, attempt)\n", "        request_id = None\n"),
    ("usage is never taken from the log", "payments/usage.py", "        pending = receipt.missing_usage(context.job.owner)\n", "        pending = []\n"),
    ("errors report no usage", "payments/errors.py", "usage = receipt.usage_of(job.owner) if context.receipts.is_known else None", "usage = None"),
    ("a claim does not wait where conditions fail", "payments/receipt_store.py", "        clock.pause(CLAIM_RECHECK)\n        return self.read().attempt(attempt.id) is not None\n", "        return True\n"),
    ("a failed condition does not stop a claim", "payments/receipt_store.py", "        if not self._write(receipt) and self.read().attempt(attempt.id) is None:\n", "        if not self._write(receipt) and self.read() is None:\n"),
    ("a claim's own lost response is another's write", "payments/receipt_store.py", "        if not self._write(receipt) and self.read().attempt(attempt.id) is None:\n", "        if not self._write(receipt):\n"),
    ("an update overwrites what others recorded", "payments/receipt_store.py", "            receipt = self.last if recorded else self.read()\n            if recorded or receipt.attempt(attempt.id) == changed:", "            if recorded:\n                receipt = self.last\n            else:\n                self.read()\n            if recorded:"),
    ("every store counts as conditional", "store/documents.py", "        return self._conditions(bucket).verified\n", "        return True\n"),
    ("If-Match is not tested", "store/documents.py", "        self._record_support(bucket, if_match=written is None)\n        return etag if written is None else written\n", "        self._record_support(bucket, if_match=True)\n        return etag if written is None else written\n"),
    ("another host's attempt counts as dead", "payments/liveness.py", "    return now < attempt.lease_until + (timedelta() if one_clock else CLOCK_TOLERANCE)\n", "    return False\n"),
    ("a lease is compared with this host's clock", "payments/context.py", "        return self.store.now()\n", "        return clock.now()\n"),
    ("machines are identified by hostname", "payments/liveness.py", "bool(worker.identity) and worker.identity == this_worker().identity", "worker.host == this_worker().host"),
    ("images are reused without a look at S3", "payments/generate.py", "                if images_exist(context, attempt, receipt):\n", "                if True:\n"),
    ("a loss is always paid for again", "payments/job.py", 'return bool(self.pays_again)', "return True"),
    ("one try pays twice", "payments/job.py", 'return self.on_unknown_outcome == "regenerate" and attempt.error is None', "return bool(self.pays_again)"),
    ("tries are identified by number only", "payments/attempt.py", "        if self.ti_id and other.ti_id:\n", "        if False:\n"),
    ("a missing folder proves that nothing was sent", "store/spool.py", "        except (OSError, ValueError, KeyError, TypeError, RecursionError):\n            return False\n\n    def add_fact", "        except (OSError, ValueError, KeyError, TypeError, RecursionError):\n            return True\n\n    def add_fact"),
    ("a copied folder proves that nothing was sent", "store/spool.py", '                and intent["inode"] == self.folder.stat().st_ino\n', ""),
    ("a rejected request's ID is that of its resend", "store/spool.py", ' and line.get("request") == latest', ""),
    ("a 404 of a proxy is a missing receipt", "store/documents.py", '                if code_of(error) == "NoSuchKey":\n                    return None\n                raise\n            if is_web_page', "                if status_of(error) == 404:\n                    return None\n                raise\n            if is_web_page"),
    ("a spool is emptied before S3 has the images", "payments/reconcile.py", "    spool, job = context.spool_of(attempt), context.job\n    sends", "    spool, job = context.spool_of(attempt), context.job\n    spool.discard()\n    sends"),
    ("unbilled usage is summed up", "payments/reconcile.py", '        "usage": attempt.usage or verdict.usage,\n        "charge"', '        "usage": attempt.usage or verdict.usage or (verdict.hint or {}).get("usage"),\n        "charge"'),
]  # fmt: skip


def run_mutants(sequences: int, seed: str, only: str = "") -> int:
    """Run the adversary against each mutant, until its first violation; print what it noticed.

    :return: the number of mutants that survived, or no longer apply
    """
    survivors = 0
    for name, module, source, replacement in MUTANTS:
        if only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="jojokey-mutant-") as folder:
            shutil.copytree(ROOT / PACKAGE, Path(folder, PACKAGE))
            Path(folder, "tests").symlink_to(ROOT / "tests")
            path = Path(folder, PACKAGE, module)
            text = path.read_text(encoding="utf-8")
            if text.count(source) != 1:
                survivors += 1
                print(f"no longer applies  {name}", flush=True)
                continue
            path.write_text(text.replace(source, replacement), encoding="utf-8")
            noticed = _violation(folder, sequences, seed)
        survivors += not noticed
        print(f"{'killed  ' if noticed else 'SURVIVED'}  {name}: {noticed}", flush=True)
    print(f"{len(MUTANTS)} mutants, {survivors} survived")
    return survivors


def _violation(folder: str, sequences: int, seed: str) -> str:
    """Return the first violation that a mutant causes, or nothing."""
    command = [
        sys.executable,
        "-m",
        "tests.adversary",
        "--first",
        "--sequences",
        str(sequences),
        "--seed",
        seed,
    ]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    found = result.stdout.strip().splitlines()
    return found[-1] if result.returncode and found else result.stderr[-200:] if result.returncode else ""
