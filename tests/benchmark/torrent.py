"""One BitTorrent client, told what to do by its arguments. It seeds until its input ends or says to
leave, and answers each line of it with what it has sent so far.

make FILE TORRENT TRACKER        writes the metadata of FILE, in pieces of 1 MiB, and says its hash
seed TORRENT DIRECTORY ADDRESS   gives away what is in DIRECTORY
pull TORRENT DIRECTORY ADDRESS   fetches it, and says when it has all

Each line of its output is a JSON object.
"""

import json
import os
import sys
import threading
import time

import libtorrent as lt

PORT = 6881


def say(**fields):
    print(json.dumps(fields), flush=True)


def make(file, torrent, tracker):
    storage = lt.file_storage()
    lt.add_files(storage, file)
    creator = lt.create_torrent(storage, 1 << 20, lt.create_torrent.v1_only)
    creator.add_tracker(tracker)
    lt.set_piece_hashes(creator, os.path.dirname(file))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(creator.generate()))
    say(hash=str(lt.torrent_info(torrent).info_hashes().v1))


def session(address):
    # What libtorrent's own high_performance_seed preset and tuning guide suggest, without the parts
    # that need other networks, and TCP alone: uTP yields to whatever else uses the link.
    return lt.session(
        {
            "listen_interfaces": f"{address}:{PORT}",
            "outgoing_interfaces": "",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "connections_limit": 500,
            "connection_speed": 500,
            "torrent_connect_boost": 255,
            "min_reconnect_time": 1,
            "unchoke_slots_limit": 8,
            "max_out_request_queue": 1500,
            "max_allowed_in_request_queue": 2000,
            "send_buffer_watermark": 3 * 1024 * 1024,
            "tick_interval": 100,
            "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.status_notification,
        }
    )


def main():
    what, *arguments = sys.argv[1:]
    if what == "make":
        make(*arguments)
        return
    torrent, directory, address = arguments
    client = session(address)
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(torrent)
    parameters.save_path = directory
    parameters.storage_mode = lt.storage_mode_t.storage_mode_sparse
    if what == "seed":
        parameters.flags |= lt.torrent_flags.seed_mode
    parameters.flags &= ~lt.torrent_flags.auto_managed
    parameters.flags &= ~lt.torrent_flags.paused
    handle = client.add_torrent(parameters)
    began = time.monotonic()

    def tell():
        while not handle.status().is_seeding:
            time.sleep(0.01)
        say(seconds=time.monotonic() - began)

    threading.Thread(target=tell, daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "leave":
            handle.pause()
        say(sent_bytes=handle.status().total_payload_upload)


main()
