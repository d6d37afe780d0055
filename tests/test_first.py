from facility import Site, assert_same_tree


def test_a_sentinel_leads_to_an_archive_that_gpg_and_tar_restore(site: Site) -> None:
    run = site.make_run()
    daemon = site.start().wait_ready()
    site.complete(run)
    document = site.wait_for("run_001", "encrypted")
    assert document["archive"]["file"] == "run_001.tar.gpg"
    assert_same_tree(run, site.restore("run_001"))
    assert site.debris() == []
    assert daemon.stop() == 0
