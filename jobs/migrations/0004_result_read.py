

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('api', '0001_initial'),
        ('jobs', '0003_job_web'),
        ('nodes', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='job',
            name='result_read_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(condition=models.Q(('result__isnull', False)), fields=['finished_at', 'result_read_at'], name='jobs_with_a_result'),
        ),
    ]
