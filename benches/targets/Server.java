// An HTTP server whose answers take exceptions, compiled code and a collector at work.
import com.sun.net.httpserver.HttpServer;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executors;

public class Server {
	static int thrown(int depth) {
		if (depth == 0) throw new IllegalStateException("as asked");
		return 1 + thrown(depth - 1);
	}

	static byte[] answer() {
		List<String> rows = new ArrayList<>();
		int caught = 0;
		for (int n = 0; n < 20; n++) {
			rows.add("row " + n + " " + new byte[512].length);
			try {
				thrown(n % 8);
			} catch (IllegalStateException e) {
				if (e.getStackTrace().length > n % 8) caught++;
			}
		}
		if (caught != 20) throw new AssertionError(caught);
		return rows.toString().getBytes();
	}

	public static void main(String[] args) throws Exception {
		var address = new InetSocketAddress(InetAddress.getByName("127.0.0.1"), Integer.parseInt(args[0]));
		HttpServer server = HttpServer.create(address, 64);
		server.createContext("/", exchange -> {
			byte[] body = answer();
			exchange.sendResponseHeaders(200, body.length);
			try (OutputStream out = exchange.getResponseBody()) {
				out.write(body);
			}
		});
		server.setExecutor(Executors.newFixedThreadPool(4));
		server.start();
		System.out.println("ready");
	}
}
