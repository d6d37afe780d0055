// Decrypt a message of OpenPGP: node decrypt.mjs key|passphrase SECRET_FILE < message > content
import { readFile } from 'node:fs/promises';
import { buffer } from 'node:stream/consumers';
import * as openpgp from 'openpgp';

const [kind, file] = process.argv.slice(2);
const secret = await readFile(file, 'utf8');
const opened = await openpgp.decrypt({
  message: await openpgp.readMessage({ binaryMessage: await buffer(process.stdin) }),
  format: 'binary',
  ...(kind === 'key'
    ? { decryptionKeys: await openpgp.readPrivateKey({ armoredKey: secret }) }
    : { passwords: secret.trim() }),
});
process.stdout.write(opened.data);
