// An HTTP server whose answers make some garbage; ends at SIGTERM.
const http = require('http');
const server = http.createServer((request, response) => {
	const rows = [];
	for (let n = 0; n < 40; n++) rows.push({ n, square: n * n });
	response.end(JSON.stringify(rows));
});
server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1', () => console.log('ready'));
process.on('SIGTERM', () => process.exit(0));
