"""Fills buckets of S3 servers, by boto3.

bucket.py make SERVER                  makes the bucket `images`
bucket.py copy SERVER OTHER            makes it at another server and copies every object into it
bucket.py put SERVER DIRECTORY PREFIX  makes it and puts every file of a directory into it
"""

import os
import sys

import boto3
from botocore.config import Config

BUCKET = "images"


def client(server):
    return boto3.client(
        "s3",
        endpoint_url=server,
        region_name="us-east-1",
        aws_access_key_id="AKTEST",
        aws_secret_access_key="SECRET",
        config=Config(s3={"addressing_style": "path"}),
    )


def objects(server):
    for page in server.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for each in page.get("Contents", []):
            key = each["Key"]
            yield key, server.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def files(directory, prefix):
    for path, _, names in os.walk(directory):
        for name in names:
            file = os.path.join(path, name)
            with open(file, "rb") as content:
                key = os.path.relpath(file, directory)
                yield f"{prefix}/{key}", content.read()


def main(what, server, *rest):
    if what == "make":
        client(server).create_bucket(Bucket=BUCKET)
        return
    contents = objects(client(server)) if what == "copy" else files(*rest)
    target = client(rest[0] if what == "copy" else server)
    target.create_bucket(Bucket=BUCKET)
    for key, body in contents:
        target.put_object(Bucket=BUCKET, Key=key, Body=body)


main(*sys.argv[1:])
